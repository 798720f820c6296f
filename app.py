"""Paretoscope: `python app.py` serves the page and starts a worker; `python app.py --help` lists the rest."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend import headless
from backend.assets import EMBEDDED_MODEL, fetch, fetched
from backend.errors import UserError
from backend.host import Host
from backend.story import parse_story
from backend.sweep import parse_sweep

# What `claims` lets one change of a recipe, beside its text.
_CONDITIONS = {"calibration": ("samples", "length"), "evaluation": ("windows", "length")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 with one sentence on stderr when it did not."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return int(options.run(options, Host.from_environment()) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python app.py", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(run=_serve, worker=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "serve the page and start a worker (the default)")
    serve.add_argument("--no-worker", dest="worker", action="store_false", help="serve the page alone")
    run = command("run", _run, "run one recipe here and now; one JSON object per measurement on stdout")
    run.add_argument("recipe", help="a JSON file, or - for standard input")
    sweep = command("sweep", _sweep, "run every recipe of a sweep, or queue them")
    sweep.add_argument("sweep", help="a JSON file, or - for standard input")
    sweep.add_argument("--queue", action="store_true", help="only queue them for the worker")
    command("worker", _worker, "work off the queue until stopped")
    export = command("export", _export, "write a run's model to a folder")
    export.add_argument("run_id", help="a run of the queue, or the path of an artifact")
    export.add_argument("--format", required=True, help="safetensors or transformers")
    export.add_argument("--to", required=True, type=Path, help="the folder to make")
    command("methods", _methods, "list the methods, one JSON object a line")
    claims = command(
        "claims", _claims, "test methods' claims, the papers' or ours, on a model; one JSON object a verdict"
    )
    claims.add_argument(
        "methods", nargs="*", metavar="METHOD", help="methods to test; none: all that make one"
    )
    claims.add_argument("--model", default=EMBEDDED_MODEL, help="the embedded id, a hub id or a folder")
    claims.add_argument("--text", help="calibration and evaluation text: a name or file:PATH")
    claims.add_argument(
        "--metrics", metavar="METRIC,...", help="measured beside what a claim is about; all by default"
    )
    for section, fields in _CONDITIONS.items():
        for field in fields:
            claims.add_argument(f"--{section}-{field}", type=int, metavar="N", help="as in a recipe")
    claims.add_argument("--seed", type=int, default=0, metavar="N", help="as in a recipe")
    story = command("story", _story, "freeze a story with all that its views show")
    story.add_argument("story", help="a JSON file of title, summary and views, or a frozen one; - for stdin")
    story.add_argument(
        "--to", required=True, type=Path, metavar="FILE", help="a .json or .html file to write"
    )
    bench = command("bench", _bench, "measure speed and memory beside their alternatives")
    bench.add_argument("which", nargs="*", help="names of benches; none: list them")
    return parser


def _serve(options: argparse.Namespace, host: Host) -> None:
    # Gradio and the queue engine take seconds that no other command needs.
    from backend.jobs import Jobs  # noqa: PLC0415
    from ui.app import build, launch  # noqa: PLC0415

    stopped = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stopped.set())
    worker = None
    jobs = Jobs(host)
    demo = build(jobs)
    try:
        # The page first: worker and assets would take the cores that it starts with.
        launch(demo, jobs)
        _provide(host)
        if fetched(host):
            jobs.submit_starter()
        worker = _start_worker() if options.worker else None
        while not stopped.wait(2):
            # A worker that was killed comes back, unless it ended by itself with something to say.
            if worker is not None and worker.poll() is not None and worker.returncode < 0:
                worker = _start_worker()
        demo.close()
    finally:
        if worker is not None:
            worker.terminate()
            try:
                worker.wait(timeout=15)
            except subprocess.TimeoutExpired:
                worker.kill()


def _provide(host: Host) -> None:
    """Fetch the assets where nobody ran `make setup`, as on a Space; hub models and folders work without."""
    try:
        if not fetched(host):
            fetch(host, lambda update: print(f"{update.stage} {update.detail}", file=sys.stderr))
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


def _start_worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "worker"], start_new_session=True)


def _run(options: argparse.Namespace, host: Host) -> None:
    headless.run(headless.read(options.recipe), host)


def _sweep(options: argparse.Namespace, host: Host) -> int:
    if options.queue:
        from backend.jobs import Jobs  # noqa: PLC0415 - the queue engine takes a second that `run` does not need

        recipes = parse_sweep(headless.read(options.sweep)).expand()
        for submitted in Jobs(host).submit_sweep(recipes, source="cli")[1]:
            print(json.dumps({"run": submitted.run_id, "created": submitted.created}))
        return 0
    return headless.sweep(headless.read(options.sweep), host)


def _worker(options: argparse.Namespace, host: Host) -> None:
    from backend.worker import work  # noqa: PLC0415 - as above

    work(host)


def _export(options: argparse.Namespace, host: Host) -> None:
    headless.export(options.run_id, options.format, options.to, host)


def _methods(options: argparse.Namespace, host: Host) -> None:
    headless.methods()


def _claims(options: argparse.Namespace, host: Host) -> int:
    given = vars(options)
    conditions: dict[str, Any] = {"seed": options.seed}
    for section, fields in _CONDITIONS.items():
        asked = {"text": options.text, **{field: given[f"{section}_{field}"] for field in fields}}
        conditions[section] = {name: value for name, value in asked.items() if value is not None}
    if options.metrics is not None:
        conditions["evaluation"]["metrics"] = options.metrics.split(",")
    return headless.claims(options.model, conditions, options.methods, host)


def _story(options: argparse.Namespace, host: Host) -> None:
    from store.database import open_database  # noqa: PLC0415 - as for `serve`
    from ui.story import freeze, is_frozen, read_frozen  # noqa: PLC0415
    from ui.story_sheet import page  # noqa: PLC0415

    if options.to.suffix not in (".json", ".html"):
        raise UserError(f"--to is {str(options.to)!r}; it takes a file that ends in .json or .html")
    written = headless.read(options.story)
    if is_frozen(written):
        frozen = read_frozen(written, options.story)
    else:
        database = open_database(host.database_url, host.journal)
        frozen = freeze(database, parse_story(written))
        database.close()
    for number, view in enumerate(frozen["views"], start=1):
        if "problem" in view:
            print(f"warning: view {number}: {view['problem']}", file=sys.stderr)
    told = page(frozen) if options.to.suffix == ".html" else json.dumps(frozen, ensure_ascii=False, indent=1)
    try:
        options.to.write_text(told, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{options.to}: cannot be written ({problem})") from None


def _bench(options: argparse.Namespace, host: Host) -> int:
    return headless.bench(options.which, host)


if __name__ == "__main__":
    sys.exit(main())
