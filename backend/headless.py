"""The commands without a page: run, sweep, export, methods, bench. Results on stdout, progress on stderr."""

import dataclasses
import json
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from backend.errors import UserError
from backend.estimate import estimate
from backend.export import export as export_artifact
from backend.host import Host, check_local
from backend.identity import run_digest
from backend.progress import Progress, Update
from backend.recipe import Recipe, parse_recipe, parse_sweep
from backend.registry import discover

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
        try:
            _run(recipe, host)
        # The sweep's edge: whatever ends one run, the others are still wanted.
        except Exception as error:
            failed += 1
            kind = "error" if isinstance(error, UserError) else f"error: {type(error).__name__}"
            print(f"{kind}: {error}", file=sys.stderr)
    return 1 if failed else 0


def export(run: str, name: str, folder: Path, host: Host) -> None:
    """Export the artifact of a run id (the first digits of its digest), or one given by its path."""
    if run.endswith(".safetensors"):
        artifact = check_local(run, host)
    else:
        found = [file for file in host.artifacts.glob("*.safetensors") if file.stem.startswith(run)]
        if len(found) != 1 or len(run) < 4:
            raise UserError(
                f"export: {len(found)} artifacts belong to run '{run}'; give the id as the page shows it"
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


def _run(recipe: Recipe, host: Host) -> None:
    # Only now: torch and transformers take seconds that `methods` and bad recipes do without.
    from backend.evaluate import Subject, evaluate  # noqa: PLC0415
    from backend.pipeline import compress  # noqa: PLC0415

    estimate(recipe, host)
    digest = run_digest(recipe, host)
    artifact, scratch = host.artifacts / f"{digest}.safetensors", host.runs / digest
    progress = _told()
    compress(recipe, host, artifact, scratch, progress)
    subject = Subject(recipe, host, artifact, scratch, progress)
    broken = None
    for name in dict.fromkeys([*recipe.evaluation.metrics, "size", "sanity"]):
        start = time.perf_counter()
        result = evaluate(name, subject)
        seconds = time.perf_counter() - start
        for found in result.measurements:
            row = {
                "run": digest[:12],
                "chain": recipe.chain(),
                **dataclasses.asdict(found),
                "seconds": seconds,
            }
            print(json.dumps(row), flush=True)
        broken = broken or result.broken
    print(f"artifact {artifact}", file=sys.stderr)
    if broken:
        print(f"broken: {broken}", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)


def _told() -> Progress:
    last: dict[str, Any] = {"time": 0.0, "stage": ""}

    def tell(update: Update) -> None:
        now = time.monotonic()
        if update.stage != last["stage"] or now - last["time"] >= 1:
            last.update(time=now, stage=update.stage)
            print(f"{update.stage} {update.done}/{update.total} {update.detail}".rstrip(), file=sys.stderr)

    return tell
