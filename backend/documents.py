"""The words of a text in pieces, so that a large one never lies in memory whole: articles, files, hub texts.

Files are read as people have them. A byte order mark tells the encoding and is no part of the text, without
one it is UTF-8; line ends become line feeds; half a surrogate pair, which no tokenizer can take, becomes
U+FFFD. What was done is told in the stamp. What cannot be read is refused with file and line.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import assets
from backend.errors import UserError
from backend.host import Host, check_local

FILE = "file:"
JOIN = "\n\n"
_LARGEST_FILE = 256 * 1024**2
# Characters read at once.
_PIECE = 1 << 16
# Percent of the articles, by a hash of the title, so that no article is ever in two parts.
_PARTS = {"calibration": range(60), "validation": range(60, 70), "test": range(70, 100)}
# Enough for 512 samples of 2048 tokens, and the part of C4 that papers evaluate on.
_C4_DOCUMENTS = {"train": 4000, "validation": 1100}
# The longer marks first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALF = re.compile("[\ud800-\udfff]")
# Halves come through the decoder, to be replaced and counted.
_PASSING = "surrogatepass"


@dataclass
class Documents:
    """One part of a text: its split's own name, how documents are joined, and what reading it changed.

    encoding    of a file that is not plain UTF-8, else empty
    repaired    halves of surrogate pairs that were replaced, once all pieces were read
    """

    name: str
    part: str
    host: Host
    split: str = ""
    join: str = JOIN
    encoding: str = ""
    repaired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.split = self.part
        if self.name.startswith(FILE):
            place = local_file(self.name, self.host)
            self.split, self.join = "file", JOIN if place.suffix == ".jsonl" else "none"
            self.encoding = _encoding(place)
        elif not self.name.startswith("wikipedia-"):
            self.split = _hub_split(self.name, self.part)

    def pieces(self) -> Iterator[str]:
        """The text from its start, some characters at a time; UserError where a file cannot be read."""
        self.repaired = 0
        for piece in self._read():
            whole, halves = _HALF.subn("\ufffd", piece)
            self.repaired += halves
            yield whole

    def told(self) -> dict[str, Any]:
        """What a stamp says of how the text was read, nothing where it was read as it is."""
        told: dict[str, Any] = {"encoding": self.encoding} if self.encoding else {}
        return told | ({"repaired": f"{self.repaired} half characters"} if self.repaired else {})

    def _read(self) -> Iterator[str]:
        if self.name.startswith(FILE):
            place = local_file(self.name, self.host)
            yield from _joined(_rows_of(place)) if place.suffix == ".jsonl" else _lines_of(place)
        elif self.name.startswith("wikipedia-"):
            yield from _joined(iter(articles(assets.articles_file(self.host, self.name[-2:]), self.part)))
        else:
            kept = _kept_hub(self.name, self.split, self.host)
            with kept.open(encoding="utf-8", newline="") as opened:
                while piece := opened.read(_PIECE):
                    yield piece


def local_file(name: str, host: Host) -> Path:
    """The file that `file:PATH` names; UserError unless it may be read as a text."""
    place = check_local(name[len(FILE) :], host)
    if place.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"text {name!r} must be a .txt file or a .jsonl file with a field 'text' in each line"
        )
    if not place.is_file():
        raise UserError(f"text {name!r} is not a file on this machine")
    if place.stat().st_size > _LARGEST_FILE:
        raise UserError(
            f"text {name!r} is larger than the {_LARGEST_FILE // 1024**2} MB that a text may have"
        )
    return place


def _joined(documents: Iterator[str]) -> Iterator[str]:
    for number, document in enumerate(documents):
        yield JOIN + document if number else document


def _encoding(place: Path) -> str:
    with _opening(place), place.open("rb") as opened:
        start = opened.read(4)
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "")


def _lines_of(place: Path) -> Iterator[str]:
    """A plain text, some thousand characters at a time."""
    number = 1
    try:
        with _opening(place), place.open(encoding=_encoding(place) or "utf-8", errors=_PASSING) as opened:
            while piece := opened.read(_PIECE):
                _check_characters(piece, place, number)
                number += piece.count("\n")
                yield piece
    except UnicodeError as problem:
        raise _undecodable(place, problem) from problem


def _rows_of(place: Path) -> Iterator[str]:
    """The field `text` of each line of a .jsonl file."""
    try:
        with _opening(place), place.open(encoding=_encoding(place) or "utf-8", errors=_PASSING) as opened:
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    yield _row(line, f"text {FILE}{place}, line {number}")
    except UnicodeError as problem:
        raise _undecodable(place, problem) from problem


def _row(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; needs an object with a string field 'text'") from None
    except ValueError as problem:
        raise UserError(f"{where}: not JSON ({problem})") from problem
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise UserError(f"{where}: needs an object with a string field 'text'")
    return row["text"]


def _check_characters(piece: str, place: Path, number: int) -> None:
    if (at := piece.find("\0")) >= 0:
        line = number + piece.count("\n", 0, at)
        raise UserError(
            f"text {FILE}{place}, line {line}: holds a NUL character, as files do that are no text and "
            "UTF-16 without a byte order mark; allowed: UTF-8"
        )


def _undecodable(place: Path, problem: UnicodeError) -> UserError:
    """Where a file cannot be decoded: line and byte, as far as lines of bytes can be told."""
    if encoding := _encoding(place).removesuffix("-sig").replace("utf-8", ""):
        return UserError(
            f"text {FILE}{place} is not the {encoding.upper()} that its byte order mark says ({problem})"
        )
    before = 0
    with place.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                line.decode("utf-8", _PASSING)
            except UnicodeDecodeError as found:
                return UserError(
                    f"text {FILE}{place}, line {number}, is not UTF-8: byte {before + found.start} is "
                    f"0x{line[found.start]:02x}; save it as UTF-8, which Latin-1 and Windows-1252 are not"
                )
            before += len(line)
    return UserError(f"text {FILE}{place} is not UTF-8 ({problem})")


@contextmanager
def _opening(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise UserError(f"text {FILE}{place} cannot be read: {problem.strerror}") from problem


@lru_cache(maxsize=4)
def articles(place: Path, part: str) -> tuple[str, ...]:
    """One part's articles, in the order of the title's hash so that subjects mix."""
    try:
        rows = json.loads(place.read_text(encoding="utf-8")).values()
    except OSError as problem:
        raise UserError("the embedded texts are not here yet; run `make setup` once") from problem
    hashed = sorted(
        (hashlib.sha256(row["title"].encode()).hexdigest(), row["title"], row["extract"]) for row in rows
    )
    seen: set[str] = set()
    documents = []
    for digest, title, extract in hashed:
        # An extract that comes again under another title could otherwise be in two parts.
        if extract not in seen and int(digest, 16) % 100 in _PARTS[part]:
            documents.append(f"{title}\n\n{extract}")
        seen.add(extract)
    return tuple(documents)


def _hub_split(name: str, part: str) -> str:
    if part == "calibration":
        return "train"
    return "validation" if name == "c4" else "test"


def _kept_hub(name: str, split: str, host: Host) -> Path:
    """A text of the hub as a plain file, so that it is the same and there when the hub is not."""
    kept = host.cache / "texts" / f"{name}-{split}.txt"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as opened:
            opened.writelines(_joined(_rows(name, split)))
    # The hub's client reports being offline as OSError, a missing or moved data set as either.
    except (OSError, ValueError) as problem:
        unfinished.unlink(missing_ok=True)
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"text {name} could not be read from the Hugging Face hub ({reason}); "
            "offline, take wikipedia-en, wikipedia-fr, wikipedia-es or file:PATH"
        ) from problem
    os.replace(unfinished, kept)
    return kept


def _rows(name: str, split: str) -> Iterator[str]:
    # 2.3 s and 90 MB that no page and no embedded text needs.
    import datasets  # noqa: PLC0415

    if name == "wikitext2":
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
        yield from rows["text"]
    elif name == "c4":
        shards = {
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        }
        stream = datasets.load_dataset(
            "allenai/c4", data_files={split: shards[split]}, split=split, streaming=True
        )
        yield from (row["text"] for row in stream.take(_C4_DOCUMENTS[split]))
    else:
        # The data set is a script, which `datasets` no longer runs; the hub keeps this conversion of it.
        branch = "hf://datasets/ptb-text-only/ptb_text_only@refs%2Fconvert%2Fparquet"
        files = {split: f"{branch}/penn_treebank/{split}/0000.parquet"}
        yield from datasets.load_dataset("parquet", data_files=files, split=split)["sentence"]
