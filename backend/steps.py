"""The steps of a run as plain functions of plain values, so that they can be called in another process."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from backend import budget
from backend.artifacts import OpenModel, computed_wider, load_model, load_tokenizer, open_artifact
from backend.evaluate import Subject, evaluate
from backend.experience import past_runs
from backend.export import export as export_artifact
from backend.export import packed_path
from backend.facts import facts
from backend.generate import write
from backend.host import Host
from backend.pipeline import compress as compress_model
from backend.progress import Progress, Update
from backend.reading import MOST_TOKENS, ids_of
from backend.reading import read as read_tokens
from backend.recipe import Calibration, Recipe, parse_recipe
from backend.sampling import Sampling
from backend.surgery import operate

# A run beside it keeps every core busy, and each small product of a token waits for its slowest thread: with
# as many threads as cores, an answer took several times as long as with one.
_WRITING_THREADS = max(1, (os.cpu_count() or 1) // 4)

# Another number makes kept answers unread.
_ANSWERS = 1


def compress(
    recipe_json: str, digest: str, home: str, progress: Progress, history: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Make the artifact of a recipe; what is there already is not made again. `history` are rows of past runs
    as of `past_runs`, which tell how far the work is."""
    # What was measured last would otherwise stay in memory beside the model that is compressed now.
    _shared_subject.cache_clear()
    host = Host.at(home)
    past = past_runs(pd.DataFrame(list(history)), host)
    report = compress_model(
        parse_recipe(recipe_json), host, artifact_path(host, digest), host.runs / digest, progress, past
    )
    return {"artifact": str(artifact_path(host, digest)), **report.told()}


def measure(recipe_json: str, digest: str, metric: str, home: str, progress: Progress) -> dict[str, Any]:
    """Run one metric on a run's artifact."""
    start = time.perf_counter()
    result = evaluate(metric, _subject(recipe_json, digest, home, progress))
    seconds = time.perf_counter() - start
    return {
        "measurements": [{**dataclasses.asdict(found), "seconds": seconds} for found in result.measurements],
        "series": [dataclasses.asdict(series) for series in result.series],
        "broken": result.broken,
    }


def generate(
    model: str, artifact: str | None, prompt: str, settings: dict[str, Any], home: str, progress: Progress
) -> dict[str, Any]:
    """Write on from a prompt with an artifact, or with the dense model; progress carries the text so far.

    What was written once by the same weights under the same settings is not written again.
    """
    torch.set_num_threads(min(torch.get_num_threads(), _WRITING_THREADS))
    host = Host.at(home)
    sampling = Sampling.model_validate(settings)
    layout = facts(model, host)
    fingerprint = layout.fingerprint
    weights = [
        fingerprint, Path(artifact).name if artifact else None, host.device, *computed_wider(layout, host)
    ]  # fmt: skip
    kept = _answer_file(host, weights, prompt, sampling)
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(model, host)
    progress(Update("open", 0, 1, ""))
    opened = _open(model, fingerprint, artifact, home)
    ids, given = list(sampling.begin), len(sampling.begin)

    def told(token: int) -> None:
        ids.append(token)
        progress(Update("generate", len(ids) - given, sampling.max_tokens, text_of(tokenizer, ids)))

    write(opened, tokenizer, prompt, sampling, told)
    pieces = [[token, tokenizer.decode([token])] for token in ids]
    made = {"text": text_of(tokenizer, ids), "tokens": pieces}
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of its own: another worker may be writing the same answer.
    temporary = kept.with_name(f"{kept.stem}-{os.getpid()}.writing")
    temporary.write_text(json.dumps(made), encoding="utf-8")
    temporary.replace(kept)
    return made


def _answer_file(host: Host, weights: list[str | None], prompt: str, sampling: Sampling) -> Path:
    """Where the answer is kept that these weights give; an artifact is named by what it holds."""
    stamp = json.dumps([_ANSWERS, weights, prompt, sampling.model_dump(mode="json")], sort_keys=True)
    return host.cache / "answers" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.json"


def levels(model: str, calibration: dict[str, Any], home: str, progress: Progress) -> dict[str, Any]:
    """Build the level database of a model and predict what each level costs."""
    _shared_subject.cache_clear()
    return budget.learn(model, Calibration.model_validate(calibration), Host.at(home), progress)


def read(
    model: str, artifacts: Sequence[tuple[str, str]], home: str, progress: Progress,
    text: str = "", answer: Sequence[int] = (), chat: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Read a text, or a prompt and the answer to it, with the dense model and with the artifacts of runs."""
    host = Host.at(home)
    tokenizer = load_tokenizer(model, host)
    progress(Update("open", 0, 1, ""))
    fingerprint = facts(model, host).fingerprint
    dense = _open(model, fingerprint, None, home)
    most = min(MOST_TOKENS, getattr(dense.model.config, "max_position_embeddings", None) or MOST_TOKENS)
    ids, cut = ids_of(tokenizer, text, answer, chat, most)
    # One after the other: only two models are open at a time.
    runs = ((run, _open(model, fingerprint, file, home)) for run, file in artifacts)
    told = read_tokens(dense, tokenizer, ids, runs, len(artifacts), progress)
    return {**told, "answer": len(ids) - len(answer) if answer else 0, "cut": cut}


def surgery(
    model: str,
    layer: str,
    stages: list[dict[str, Any]],
    calibration: dict[str, Any],
    home: str,
    progress: Progress,
) -> dict[str, Any]:
    """Compress one linear alone and measure the model."""
    torch.set_num_threads(min(torch.get_num_threads(), _WRITING_THREADS))
    return operate(model, layer, stages, Calibration.model_validate(calibration), Host.at(home), progress)


def export(
    model: str, run: str, artifact: str, form: str, home: str, progress: Progress
) -> dict[str, Any]:  # fmt: skip
    """Write a run's model in a format and pack it into one file that a browser can fetch."""
    host = Host.at(home)
    packed = packed_path(host, run, form)
    packed.parent.mkdir(parents=True, exist_ok=True)
    if not packed.exists():
        with tempfile.TemporaryDirectory(dir=packed.parent, prefix=".export-") as made:
            progress(Update("export", 0, 2, form))
            folder = Path(made) / packed.stem
            export_artifact(Path(artifact), form, folder, host)
            progress(Update("export", 1, 2, packed.name))
            archive = shutil.make_archive(f"{made}/packed", "zip", made, folder.name)
            os.replace(archive, packed)
    progress(Update("export", 2, 2, packed.name))
    return {"file": packed.name, "bytes": packed.stat().st_size}


def artifact_path(host: Host, digest: str) -> Path:
    """Where the artifact of a run lies."""
    return host.artifacts / f"{digest}.safetensors"


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The text of an answer, marks of turns and ends left out."""
    return tokenizer.decode(ids, skip_special_tokens=True)


@lru_cache(maxsize=2)
def _open(model: str, fingerprint: str, artifact: str | None, home: str) -> OpenModel:
    """Kept open for the next answer; the fingerprint tells apart what a folder held before and holds now."""
    host = Host.at(home)
    return load_model(facts(model, host), host) if artifact is None else open_artifact(Path(artifact), host)


# The metrics of a run follow each other in one process: the open artifact and its scores serve them all.
@lru_cache(maxsize=1)
def _shared_subject(recipe_json: str, digest: str, home: str) -> Subject:
    host = Host.at(home)
    recipe: Recipe = parse_recipe(recipe_json)
    return Subject(recipe, host, artifact_path(host, digest), host.runs / digest, lambda update: None)


def _subject(recipe_json: str, digest: str, home: str, progress: Progress) -> Subject:
    subject = _shared_subject(recipe_json, digest, home)
    subject.progress = progress
    return subject
