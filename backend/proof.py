"""Whether the walk computes the model: its blocks one by one, the last norm and the head, against the model.

Both read a few tokens in float32. What a family's row does not know of, as a scale on the logits, shows here
before any number is measured with it. A model that passed is not asked again.
"""

import hashlib

import torch
import transformers
from torch import Tensor

from backend.artifacts import OpenModel
from backend.errors import UserError
from backend.facts import ModelFacts
from backend.families import blocks_of
from backend.feed import Feed
from backend.host import Host
from backend.precision import computed_as, name_of
from backend.progress import silent
from backend.solvers.probing import answers, apart, probe_tokens

# Another number makes kept proofs unread.
_FORMAT = 1


@torch.no_grad()
def prove_walk(opened: OpenModel, layout: ModelFacts, host: Host) -> None:
    """UserError, with what differs, unless walk and model agree."""
    kept = host.cache / "proofs" / _name(layout)
    if kept.exists():
        return
    ids = probe_tokens(opened.model)
    with computed_as(opened.model, opened.family, torch.float32):
        theirs = answers(opened.model, ids)
        mine = opened.readout(_walked(opened, ids))
    if not bool(torch.isfinite(theirs).all()):
        raise UserError(f"model {layout.id}: its logits are no numbers, even in float32; fetch it again")
    if off := apart(mine, theirs):
        raise UserError(
            f"model {layout.id}: it computes more than a {opened.family.name} model's blocks, norm and head "
            f"(logits differ by {off:.1%} of the largest); this checkpoint is not supported"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()


def _walked(opened: OpenModel, ids: Tensor) -> Tensor:
    """Final states [length, d] of token ids [length], block by block as a walk goes."""
    feed = Feed(opened, ids[None], silent)
    for block in range(len(blocks_of(opened.model, opened.family))):
        feed.advance(block)
    return feed.final()[0]


def first_overflow(opened: OpenModel, ids: Tensor) -> str | None:
    """The first block, counted from 1, that turns token ids [length] into values that are no numbers, and the
    type that it is computed in; None where all are."""
    feed = Feed(opened, ids[None], silent)
    for block in range(len(blocks_of(opened.model, opened.family))):
        feed.advance(block)
        if not bool(torch.isfinite(feed.states).all()):
            return f"block {block + 1} in {name_of(opened.compute_dtype)}"
    return None


def overflow(model: str, where: str) -> UserError:
    """What to say of a dense model that cannot be computed as it is."""
    return UserError(
        f"model {model}: the dense model itself gives values that are no numbers, in {where}; allowed: "
        "PARETOSCOPE_COMPUTE=float32 on a processor, or its checkpoint in bfloat16 or float32"
    )


def _name(layout: ModelFacts) -> str:
    told = f"{_FORMAT} {layout.fingerprint} {transformers.__version__} {torch.__version__}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]
