"""Calibration and evaluation text as blocks of token ids, each with the protocol it was cut by."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend import assets
from backend.errors import UserError
from backend.host import Host, check_local

FILE = "file:"
_JOIN = "\n\n"
_LARGEST_FILE = 256 * 1024**2
# Percent of the articles, by a hash of the title, so that no article is ever in two parts.
_PARTS = {"calibration": range(60), "validation": range(60, 70), "test": range(70, 100)}
# Enough for 512 samples of 2048 tokens, and the part of C4 that papers evaluate on.
_C4_DOCUMENTS = {"train": 4000, "validation": 1100}


@dataclass(frozen=True)
class TextCard:
    """What the catalogue says about a text."""

    name: str
    title: str
    licence: str
    note: str


@dataclass(frozen=True)
class Tokens:
    """`ids` [samples, length] int64 and their stamp: numbers compare only under equal stamps."""

    ids: torch.Tensor
    protocol: dict[str, Any]


def texts(host: Host) -> list[TextCard]:
    """The texts that a recipe can name."""
    there = assets.articles_file(host, "en").exists()
    embedded = "embedded, works offline" if there else "embedded, but not fetched yet: run `make setup`"
    hub = "read from the Hugging Face hub, then kept"
    cards = [
        TextCard(f"wikipedia-{language}", f"Wikipedia introductions, {title}", "CC BY-SA 4.0", embedded)
        for language, title in (("en", "English"), ("fr", "French"), ("es", "Spanish"))
    ]
    return [
        *cards,
        TextCard("wikitext2", "WikiText-2 (raw)", "CC BY-SA 3.0", hub),
        TextCard("c4", "C4 (English)", "ODC-BY", hub),
        TextCard("ptb", "Penn Treebank", "LDC, for research", hub),
    ]


def calibration(name: str, tokenizer: Any, samples: int, length: int, seed: int, host: Host) -> Tokens:
    """`samples` non-overlapping blocks of the text's calibration part, picked by the seed."""
    ids, protocol = _tokenize(name, "calibration", tokenizer, host)
    blocks = len(ids) // length
    if blocks < samples:
        raise UserError(
            f"calibration text {name} holds {blocks} samples of {length} tokens, {samples} are asked for; "
            f"{_way_out(blocks, len(ids), 'samples')}"
        )
    picked = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:samples]
    protocol |= {"samples": samples, "length": length, "seed": seed}
    return Tokens(ids[: blocks * length].view(blocks, length)[picked], protocol)


def evaluation(name: str, tokenizer: Any, length: int, windows: int, host: Host) -> Tokens:
    """The first `windows` non-overlapping windows of the text's test part; 0 takes all there are."""
    ids, protocol = _tokenize(name, "test", tokenizer, host)
    held = len(ids) // length
    if held < max(windows, 1):
        raise UserError(
            f"evaluation text {name} holds {held} windows of {length} tokens, {windows or 1} are asked for; "
            f"{_way_out(held, len(ids), 'windows')}"
        )
    windows = windows or held
    protocol |= {
        "window": length,
        "stride": length,
        "windows": windows,
        "tokens": windows * (length - 1),
        "loss_dtype": "float32",
    }
    return Tokens(ids[: windows * length].view(windows, length), protocol)


def check_text(name: str, host: Host) -> None:
    """UserError unless the name is in the catalogue, or a local file that may be read; asks no hub."""
    if name.startswith(FILE):
        _local_file(name, host)
    elif name not in (known := [card.name for card in texts(host)]):
        raise UserError(f"text {name!r} is not known; take one of {', '.join(known)} or {FILE}PATH")


def same_text(a: str, b: str) -> bool:
    """Whether calibration on `a` leaks into evaluation on `b`: catalogue texts are split, files are not."""
    if not (a.startswith(FILE) and b.startswith(FILE)):
        return False
    return Path(a[len(FILE) :]).expanduser().resolve() == Path(b[len(FILE) :]).expanduser().resolve()


def _way_out(held: int, tokens: int, unit: str) -> str:
    shorter = f"the text has {tokens} tokens in all"
    return f"ask for at most {held} {unit} or for shorter ones ({shorter})" if held else shorter


def _tokenize(name: str, part: str, tokenizer: Any, host: Host) -> tuple[torch.Tensor, dict[str, Any]]:
    """All ids of one part of a text in one go, and the first half of its stamp."""
    text, split, join = _read(name, part, host)
    digest = hashlib.sha256(text.encode()).hexdigest()
    vocabulary = tokenizer_digest(tokenizer)
    kept = host.cache / "tokens" / f"{digest[:32]}-{vocabulary}.npy"
    ids = _load_ids(kept)
    if ids is None:
        # verbose=False: the text is longer than the model's window on purpose.
        ids = np.asarray(
            tokenizer(text, verbose=False, return_attention_mask=False)["input_ids"], dtype=np.int32
        )
        _save_ids(kept, ids)
    starts_with_bos = len(ids) > 0 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    protocol = {
        "text": name,
        "split": split,
        "digest": digest[:16],
        "join": join,
        "bos": "tokenizer default" if starts_with_bos else "none",
        "tokenizer": vocabulary,
    }
    return torch.from_numpy(ids.astype(np.int64)), protocol


def tokenizer_digest(tokenizer: Any) -> str:
    """12 hex digits of the vocabulary, of its rules, and of the special tokens added by default."""
    whole = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else ""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer("")["input_ids"], whole]
    told = json.dumps(facts, ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _load_ids(kept: Path) -> np.ndarray | None:
    try:
        return np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _save_ids(kept: Path, ids: np.ndarray) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".unfinished", delete=False) as file:
        np.save(file, ids, allow_pickle=False)
    os.replace(file.name, kept)


def _read(name: str, part: str, host: Host) -> tuple[str, str, str]:
    """The words of one part, the split's own name, and how documents were joined."""
    check_text(name, host)
    if name.startswith(FILE):
        place = _local_file(name, host)
        join = _JOIN if place.suffix == ".jsonl" else "none"
        return _read_file(place), "file", join
    if name.startswith("wikipedia-"):
        return _JOIN.join(_articles(assets.articles_file(host, name[-2:]), part)), part, _JOIN
    split = _hub_split(name, part)
    return _read_hub(name, split, host), split, _JOIN


def _local_file(name: str, host: Host) -> Path:
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


def _read_file(place: Path) -> str:
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise UserError(f"text {FILE}{place} is not UTF-8: byte {problem.start} cannot be read") from problem
    except OSError as problem:
        raise UserError(f"text {FILE}{place} cannot be read: {problem.strerror}") from problem
    return _JOIN.join(_documents(text, place)) if place.suffix == ".jsonl" else text


def _documents(lines: str, place: Path) -> Iterator[str]:
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise UserError(f"text {FILE}{place}, line {number}: not JSON ({problem})") from problem
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f"text {FILE}{place}, line {number}: needs an object with a string field 'text'")
        yield row["text"]


@lru_cache(maxsize=4)
def _articles(place: Path, part: str) -> tuple[str, ...]:
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


def _read_hub(name: str, split: str, host: Host) -> str:
    """A text of the hub; kept as plain text, so that it is the same and there when the hub is not."""
    kept = host.cache / "texts" / f"{name}-{split}.txt"
    if kept.exists():
        return kept.read_bytes().decode()
    try:
        text = _JOIN.join(_rows(name, split))
    # The hub's client reports being offline as OSError, a missing or moved data set as either.
    except (OSError, ValueError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"text {name} could not be read from the Hugging Face hub ({reason}); "
            "offline, take wikipedia-en, wikipedia-fr, wikipedia-es or file:PATH"
        ) from problem
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_bytes(text.encode())
    os.replace(unfinished, kept)
    return text


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
