"""Calibration and evaluation text as blocks of token ids, each with the protocol it was cut by."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend import assets
from backend.documents import FILE, Documents
from backend.errors import UserError
from backend.host import Host
from backend.tokenizing import check_rows, token_ids

# Pieces of a file that are looked at before anything is queued.
_FIRST = 16


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
    protocol |= {"samples": samples, "length": length, "seed": seed}
    return Tokens(_blocks(ids, _picked(blocks, seed)[:samples], length), protocol)


def held_out(
    name: str, tokenizer: Any, windows: int, length: int, apart_from: tuple[int, int, int], host: Host
) -> Tokens:
    """At most `windows` blocks of the calibration part that share no token with the calibration of
    `apart_from` (samples, their length, seed): what is fitted there is judged here.

    Raises UserError when that calibration leaves no block of this length.
    """
    ids, protocol = _tokenize(name, "calibration", tokenizer, host)
    samples, sample_length, seed = apart_from
    used = np.zeros(len(ids), dtype=bool)
    for block in _picked(len(ids) // sample_length, seed)[:samples].tolist():
        used[block * sample_length : (block + 1) * sample_length] = True
    blocks = len(ids) // length
    free = ~used[: blocks * length].reshape(blocks, length).any(axis=1)
    order = _picked(blocks, seed)
    left = order[torch.from_numpy(free)[order]][:windows]
    if not len(left):
        raise UserError(
            f"calibration text {name}: {samples} samples of {sample_length} tokens leave no {length} tokens "
            f"in a row to judge by ({len(ids)} tokens in all); allowed: fewer samples"
        )
    protocol |= {
        "samples": len(left), "length": length, "seed": seed,
        "apart_from": f"{samples} samples of {sample_length}",
    }  # fmt: skip
    return Tokens(_blocks(ids, left, length), protocol)


def _picked(blocks: int, seed: int) -> torch.Tensor:
    """Numbers of blocks in the order that the seed picks them."""
    return torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))


def _blocks(ids: np.ndarray, numbers: torch.Tensor, length: int) -> torch.Tensor:
    picked = [ids[number * length : (number + 1) * length] for number in numbers.tolist()]
    return torch.from_numpy(np.stack(picked).astype(np.int64))


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
    return Tokens(_blocks(ids, torch.arange(windows), length), protocol)


def check_text(name: str, host: Host) -> None:
    """UserError unless the name is in the catalogue, or a local file whose first lines can be read; asks no
    hub."""
    _check_name(name, host)
    if name.startswith(FILE):
        for _ in islice(Documents(name, "test", host).pieces(), _FIRST):
            pass


def _check_name(name: str, host: Host) -> None:
    known = [card.name for card in texts(host)]
    if not name.startswith(FILE) and name not in known:
        raise UserError(f"text {name!r} is not known; take one of {', '.join(known)} or {FILE}PATH")


def same_text(a: str, b: str) -> bool:
    """Whether calibration on `a` leaks into evaluation on `b`: catalogue texts are split, files are not."""
    if not (a.startswith(FILE) and b.startswith(FILE)):
        return False
    return Path(a[len(FILE) :]).expanduser().resolve() == Path(b[len(FILE) :]).expanduser().resolve()


def _way_out(held: int, tokens: int, unit: str) -> str:
    shorter = f"the text has {tokens} tokens in all"
    return f"ask for at most {held} {unit} or for shorter ones ({shorter})" if held else shorter


def _tokenize(name: str, part: str, tokenizer: Any, host: Host) -> tuple[np.ndarray, dict[str, Any]]:
    """All ids of one part of a text, from the disk as they are asked for, and the first half of its stamp."""
    _check_name(name, host)
    text = Documents(name, part, host)
    total = hashlib.sha256()
    for piece in text.pieces():
        total.update(piece.encode())
    digest, vocabulary = total.hexdigest(), tokenizer_digest(tokenizer)
    kept = host.cache / "tokens" / f"{digest[:32]}-{vocabulary}.npy"
    ids = _load_ids(kept)
    if ids is None:
        _save_ids(kept, text, tokenizer)
        ids = np.load(kept, mmap_mode="r", allow_pickle=False)
    check_rows(ids, tokenizer, f"text {name}")
    starts_with_bos = len(ids) > 0 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    protocol = {
        "text": name,
        "split": text.split,
        "digest": digest[:16],
        "join": text.join,
        "bos": "tokenizer default" if starts_with_bos else "none",
        "tokenizer": vocabulary,
        **text.told(),
    }
    return ids, protocol


def tokenizer_digest(tokenizer: Any) -> str:
    """12 hex digits of the vocabulary, of its rules, and of the special tokens added by default."""
    whole = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else ""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer("")["input_ids"], whole]
    told = json.dumps(facts, ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _load_ids(kept: Path) -> np.ndarray | None:
    try:
        return np.load(kept, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _save_ids(kept: Path, text: Documents, tokenizer: Any) -> None:
    """Write a text's token ids int32 without ever holding all of them."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=kept.parent) as raw:
        count = 0
        for ids in token_ids(tokenizer, text.pieces()):
            raw.write(ids.tobytes())
            count += len(ids)
        raw.seek(0)
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".unfinished", delete=False) as file:
            head = {"descr": "<i4", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, head)
            shutil.copyfileobj(raw, file)
    os.replace(file.name, kept)
