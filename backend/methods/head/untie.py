"""Give the output head weights of its own, equal to the embedding's, so that stages can name it alone.

Nothing changes but the bytes, which grow by the head's: what a later stage makes of `lm_head` has to win
that back. A head that is not tied stays as it is. Tied embeddings: arXiv 1608.05859.
"""

from backend.registry import method
from backend.shrink import untie as untied
from backend.views import Work


@method(paper="arXiv:1608.05859", unties=True)
def untie(work: Work) -> None:
    """The model with a head of its own."""
    untied(work.model, work.family.head)
