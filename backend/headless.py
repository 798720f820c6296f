"""The commands without a page. Results on stdout, progress on stderr."""

import dataclasses
import json
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backend.caches import trim
from backend.claims import Outcome, series_name, verdict
from backend.claims import recipes as claim_recipes
from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export as export_artifact
from backend.facts import facts
from backend.host import Host, check_local
from backend.identity import run_digest, with_absolute_paths
from backend.progress import Progress, Update
from backend.recipe import Recipe, parse_recipe
from backend.registry import discover
from backend.sweep import parse_sweep
from backend.text import check_text, same_text

if TYPE_CHECKING:
    from backend.evaluate import Result

Made = TypeVar("Made")

_LONGEST_RUN = 7 * 86_400.0
_BENCHES = Path(__file__).parent.parent / "bench"


def read(source: str) -> str:
    """The text of a file, or of standard input for `-`; UserError when it cannot be read."""
    if source == "-":
        return sys.stdin.read()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read ({error})") from None


def run(text: str, host: Host) -> None:
    """Compress and measure one recipe; prints every measurement as soon as it is there."""
    _run(parse_recipe(text), host)


def sweep(text: str, host: Host) -> int:
    """Run every recipe of a sweep in turn; one that fails is told on stderr and the others go on."""
    failed = 0
    recipes = parse_sweep(text).expand()
    for number, recipe in enumerate(recipes, start=1):
        print(f"run {number} of {len(recipes)}: {recipe.chain()}", file=sys.stderr)
        failed += isinstance(_tried(partial(_run, recipe, host)), str)
    return 1 if failed else 0


def claims(model: str, conditions: Mapping[str, Any], wanted: Sequence[str], host: Host) -> int:
    """Run the claims of all methods, or of those wanted, and print a verdict each; 1 when a run failed.

    `conditions`: calibration, evaluation and seed, as a recipe has them. A run that two claims share is one.
    """
    known = {name: found.claim for name, found in discover().methods.items() if found.claim}
    for name in wanted:
        if name not in known:
            raise UserError(f"claims: '{name}' makes no claim; allowed: {', '.join(known)}")
    shared = with_absolute_paths(parse_recipe({"model": model, **conditions}))
    facts(shared.model, host)
    check_text(shared.calibration.text, host)
    check_text(shared.evaluation.text, host)
    done: dict[str, _Found | str] = {}
    for name in wanted or known:
        claim = known[name]
        pair = claim_recipes(claim, shared.model, shared.calibration, shared.evaluation, shared.seed)
        for recipe in pair:
            if recipe.to_json() not in done:
                print(f"claim of {name}: {recipe.chain()}", file=sys.stderr)
                done[recipe.to_json()] = _tried(partial(_found, recipe, host))
        better, worse = (done[recipe.to_json()] for recipe in pair)
        said = verdict(_outcome(better, claim.metric), _outcome(worse, claim.metric), claim.more_bytes)
        row = {
            "method": name,
            "claim": claim.text,
            "whose": claim.whose,
            "paper_says": claim.paper_says,
            "verdict": said.word,
            "metric": claim.metric,
            "difference": said.difference,
            "difference_of": "KL in nats per token" if "kl" in claim.metric else "loss in nats per token",
            "stderr": said.stderr,
            "windows": shared.evaluation.windows,
            "model": shared.model,
            "calibration": shared.calibration.model_dump(mode="json"),
            "evaluation": shared.evaluation.model_dump(mode="json"),
            "better": _side(pair[0], better, claim.metric),
            "worse": _side(pair[1], worse, claim.metric),
        }
        print(json.dumps(row), flush=True)
    return 1 if any(isinstance(found, str) for found in done.values()) else 0


def export(run: str, name: str, folder: Path, host: Host) -> None:
    """Export the artifact of a run id (the first digits of its digest), or one given by its path."""
    if run.endswith(".safetensors"):
        artifact = check_local(run, host)
    else:
        found = [file for file in host.artifacts.glob("*.safetensors") if file.stem.startswith(run)]
        if len(found) != 1 or len(run) < 4:
            raise UserError(
                f"export: '{run[:80]}' names {'no artifact' if not found else 'too few digits of a run'}; "
                "allowed: the id as the page shows it, or enough of its digits (4 or more) to be the only one"
            )
        artifact = found[0]
    export_artifact(artifact, name, folder, host)
    print(json.dumps({"folder": str(folder), "format": name}))


def methods() -> None:
    """Print the catalogue, one JSON object a line."""
    for found in discover().methods.values():
        print(
            json.dumps(
                {
                    "id": found.id,
                    "paper": found.paper,
                    "summary": found.summary,
                    "needs": found.needs,
                    "claim": found.claim
                    and {
                        "text": found.claim.text,
                        "whose": found.claim.whose,
                        "paper_says": found.claim.paper_says,
                    },
                    "parameters": found.params.model_json_schema()["properties"],
                }
            )
        )


def bench(names: list[str], host: Host) -> int:
    """Run scripts of the bench folder by name; without names, list them."""
    known = sorted(file.stem for file in _BENCHES.glob("[a-z]*.py") if file.stem != "fill_store")
    if not names:
        print("\n".join(known))
    for name in names:
        if name not in known:
            raise UserError(f"bench: there is no '{name}'; allowed: {', '.join(known)}")
        sys.argv = [f"{name}.py"]
        runpy.run_path(str(_BENCHES / f"{name}.py"), run_name="__main__")
    return 0


@dataclasses.dataclass
class _Found:
    """All that one run measured."""

    run: str
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    windows: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    broken: str | None = None


def _found(recipe: Recipe, host: Host) -> _Found:
    found = _Found(run_digest(recipe, host)[:12])
    for _, result, _ in _results(recipe, host):
        found.numbers |= {measured.metric: measured.value for measured in result.measurements}
        found.windows |= {series.name: series.values for series in result.series}
        found.broken = found.broken or result.broken
    return found


def _tried(work: Callable[[], Made]) -> Made | str:
    """What came of one run of several, or in one line why it failed; a bug's traceback goes to stderr."""
    try:
        return work()
    # Hours of other runs wait behind this one, and whatever ended it says nothing about them.
    except Exception as error:
        if isinstance(error, UserError):
            said = str(error)
        else:
            said = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"error: {said}", file=sys.stderr)
        return said


def _outcome(found: _Found | str, metric: str) -> Outcome | None:
    if isinstance(found, str):
        return None
    windows = found.windows.get(series_name(metric), ())
    return Outcome(windows, int(found.numbers["size.packed"]), found.broken)


def _side(recipe: Recipe, found: _Found | str, metric: str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"chain": recipe.chain(), "failed": found}
    told = {"chain": recipe.chain(), "run": found.run, metric: found.numbers.get(metric)}
    return {**told, "size.packed": found.numbers["size.packed"], "broken": found.broken}


def _run(recipe: Recipe, host: Host) -> None:
    for digest, result, seconds in _results(recipe, host):
        for found in result.measurements:
            row = {
                "run": digest[:12],
                "chain": recipe.chain(),
                **dataclasses.asdict(found),
                "seconds": seconds,
            }
            print(json.dumps(row), flush=True)


def _results(recipe: Recipe, host: Host) -> Iterator[tuple[str, "Result", float]]:
    """(digest of the run, what one metric found, its seconds), metric by metric."""
    # Only now: torch and transformers take seconds that `methods` and bad recipes do without.
    from backend.evaluate import Subject, evaluate  # noqa: PLC0415
    from backend.pipeline import compress  # noqa: PLC0415

    for note in estimate(recipe, host).notes:
        print(f"warning: {note}", file=sys.stderr)
    if recipe.stages and any(same_text(text, recipe.evaluation.text) for text in recipe.texts):
        print(
            "warning: calibration and evaluation read the same file: the numbers will flatter",
            file=sys.stderr,
        )
    digest = run_digest(recipe, host)
    artifact, scratch = host.artifacts / f"{digest}.safetensors", host.runs / digest
    progress = _told()
    report = compress(recipe, host, artifact, scratch, progress)
    for stage, notes in report.notes.items():
        print(f"{stage}: {json.dumps(notes)}", file=sys.stderr)
    subject = Subject(recipe, host, artifact, scratch, progress)
    broken = None
    for name in dict.fromkeys([*recipe.evaluation.metrics, "size", "sanity"]):
        start = time.perf_counter()
        result = evaluate(name, subject)
        yield digest, result, time.perf_counter() - start
        broken = broken or result.broken
    print(f"artifact {artifact}", file=sys.stderr)
    if broken:
        print(f"broken: {broken}", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)
    # Nothing is known here of runs that a worker does beside this one.
    trim(host, time.time() - _LONGEST_RUN)


def _told() -> Progress:
    last: dict[str, Any] = {"time": 0.0, "stage": ""}

    def tell(update: Update) -> None:
        now = time.monotonic()
        if update.stage != last["stage"] or now - last["time"] >= 1:
            last.update(time=now, stage=update.stage)
            print(f"{update.stage} {update.done}/{update.total} {update.detail}".rstrip(), file=sys.stderr)

    return tell
