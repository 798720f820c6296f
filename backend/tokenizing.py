"""A text's token ids piece by piece, the same as of the whole text in one go.

Neighbouring pieces overlap. Where both read the same run of tokens in the overlap, far from either's edge,
they are put together; where they do not, as in a text without any break, the overlap grows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.errors import UserError

# Characters of a piece, and those that the next one reads again.
_PIECE, _OVERLAP = 1 << 17, 1 << 12
# Equal tokens in a row that make two readings one.
_RUN = 32

Ids = np.ndarray[Any, np.dtype[np.int32]]


@dataclass
class _Reading:
    """Token ids of a piece of text, and where each begins in the whole text."""

    ids: Ids
    starts: np.ndarray[Any, np.dtype[np.int64]]


def check_rows(ids: Any, tokenizer: Any, where: str) -> None:
    """UserError for a token id without a row in the embedding of the model that a tokenizer belongs to."""
    rows = getattr(tokenizer, "embedding_rows", None)
    most = int(np.max(np.asarray(ids))) if rows is not None and np.size(ids) else -1
    if rows is not None and most >= rows:
        raise UserError(
            f"{where}: token {most} ({tokenizer.decode([most])!r}) has no row in this model's embedding, "
            f"which has {rows}; its tokenizer belongs to a larger model"
        )


def token_ids(tokenizer: Any, pieces: Iterator[str], size: int = _PIECE) -> Iterator[Ids]:
    """Token ids int32 of the joined pieces, with what the tokenizer adds to a text by default.

    A tokenizer that does not tell where its tokens begin reads the whole text at once.
    """
    if not getattr(tokenizer, "is_fast", False):
        # verbose=False: the text is longer than the model's window on purpose.
        whole = tokenizer("".join(pieces), verbose=False, return_attention_mask=False)["input_ids"]
        yield np.asarray(whole, dtype=np.int32)
        return
    before, after = _added(tokenizer)
    yield before
    yield from _stitched(tokenizer, pieces, size)
    yield after


def _stitched(tokenizer: Any, pieces: Iterator[str], size: int) -> Iterator[Ids]:
    usual = min(_OVERLAP, size // 2)
    window, start, length, overlap, begin = _Window(pieces), 0, size + usual, usual, 0
    now = _read(tokenizer, window, start, length)
    while not window.ends_before(start + length):
        follows, further = start + length - overlap, max(size, overlap) + usual
        ahead = _read(tokenizer, window, follows, further)
        met = _meeting(now, ahead, follows + overlap // 4, start + length - overlap // 4, begin)
        if met is None:
            # A longer piece ends elsewhere, and overlaps further.
            overlap, length = 4 * overlap, length + 4 * overlap
            now = _read(tokenizer, window, start, length)
            continue
        mine, theirs = met
        yield now.ids[begin:mine]
        now, begin, start, length, overlap = ahead, theirs, follows, further, usual
        window.forget(start)
    yield now.ids[begin:]


def _meeting(one: _Reading, other: _Reading, first: int, last: int, begin: int) -> tuple[int, int] | None:
    """Positions in both readings of a run of equal tokens that begins between two places, if there is one."""
    places = {int(start): at for at, start in reversed(list(enumerate(other.starts)))}
    for mine in range(max(begin, int(np.searchsorted(one.starts, first))), len(one.ids) - _RUN):
        if one.starts[mine] > last:
            return None
        if mine and one.starts[mine - 1] == one.starts[mine]:
            # Inside a character of several tokens.
            continue
        theirs = places.get(int(one.starts[mine]))
        if theirs is None or len(other.ids) < theirs + _RUN:
            continue
        here, there = slice(mine, mine + _RUN), slice(theirs, theirs + _RUN)
        if np.array_equal(one.ids[here], other.ids[there]) and np.array_equal(
            one.starts[here], other.starts[there]
        ):
            return mine, theirs
    return None


def _read(tokenizer: Any, window: "_Window", start: int, length: int) -> _Reading:
    found = tokenizer(
        window.text(start, length), add_special_tokens=False, return_offsets_mapping=True,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    offsets = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return _Reading(np.asarray(found["input_ids"], dtype=np.int32), offsets[:, 0] + start)


def _added(tokenizer: Any) -> tuple[Ids, Ids]:
    """Token ids that the tokenizer puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    if not plain:
        return np.asarray(whole, np.int32), np.empty(0, np.int32)
    before = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return np.asarray(whole[:before], np.int32), np.asarray(whole[before + len(plain) :], np.int32)


class _Window:
    """A stretch of a text that is read in pieces, by places in the whole."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces, self._held, self._start, self._over = pieces, "", 0, False

    def text(self, start: int, length: int) -> str:
        """So many characters from a place on, or what is left."""
        self._fill(start + length)
        return self._held[start - self._start : start - self._start + length]

    def ends_before(self, place: int) -> bool:
        """Whether the text has no character at a place."""
        self._fill(place + 1)
        return self._start + len(self._held) <= place

    def forget(self, place: int) -> None:
        """Let go of what is before a place."""
        self._held, self._start = self._held[place - self._start :], place

    def _fill(self, place: int) -> None:
        held = [self._held]
        reached = self._start + len(self._held)
        while reached < place and not self._over:
            piece = next(self._pieces, None)
            if piece is None:
                self._over = True
            else:
                held.append(piece)
                reached += len(piece)
        if len(held) > 1:
            self._held = "".join(held)
