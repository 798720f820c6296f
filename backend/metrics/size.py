"""What the artifact weighs, counted on the tensors it stores.

size.packed              bytes of all tensors: = embeddings + linears + rest
size.embeddings          input embedding, learned positions, and the head when it has a weight of its own
size.linears             the linears of the blocks: codes, scales, zeros, masks, kept values, factors
size.rest                norms and biases
size.file                bytes of the artifact on disk, header included
size.bits_per_weight     8 * linears / original weights of these linears
size.bits_per_parameter  8 * packed / original parameters of the model
"""

from backend.artifacts import tensor_sizes
from backend.evaluate import Measured, Result, Subject
from backend.facts import facts
from backend.registry import metric


@metric
def size(subject: Subject) -> Result:
    """Seven numbers; they depend on no text."""
    layout = facts(subject.recipe.model, subject.host)
    sizes = tensor_sizes(subject.artifact)
    embedding_names = (*layout.family.embeddings, layout.family.head)
    embeddings = linears = rest = 0
    for name, count in sizes.items():
        owner = name.split("#")[0] if "#" in name else name.removesuffix(".weight")
        if owner in layout.layers:
            linears += count
        elif owner.startswith(embedding_names):
            embeddings += count
        else:
            rest += count
    packed = embeddings + linears + rest
    weights = sum(rows * columns for rows, columns in layout.layers.values())
    stamp = {"counted": "tensors of the artifact"}
    values = [
        ("size.packed", packed, "bytes"),
        ("size.embeddings", embeddings, "bytes"),
        ("size.linears", linears, "bytes"),
        ("size.rest", rest, "bytes"),
        ("size.file", subject.artifact.stat().st_size, "bytes"),
        ("size.bits_per_weight", 8 * linears / weights, "bits"),
        ("size.bits_per_parameter", 8 * packed / layout.parameters, "bits"),
    ]
    return Result([Measured(name, float(value), unit, True, stamp) for name, value, unit in values])
