"""The model of a run as a file in the browser: packed by a worker on demand, then fetched at an address."""

import re
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request, Response
from fastapi.responses import FileResponse

from backend.errors import UserError
from backend.export import formats, packed_path
from backend.host import Host
from backend.jobs import Jobs
from store import results
from ui.panel import STATES, button, link
from ui.quantities import byte_size
from ui.routes import add_route
from ui.texts import say

_NAME = re.compile(r"([0-9a-f]{12})-([a-z]+)\.zip")


def ask(jobs: Jobs, run_id: str, form: str, user: str) -> None:
    """Have the model of a run packed; UserError when there is no such run, model or format."""
    run = results.run(jobs.database, run_id)
    if run is None or not run["artifact"] or form not in formats():
        raise UserError(say("explore.nothing_to_export", run=run_id, formats=", ".join(formats())))
    there = packed_path(jobs.host, run_id, form).exists()
    jobs.ask("export", run["model"], _arguments(run, form), user, anew=not there)


def offers(jobs: Jobs, run: dict[str, Any]) -> str:
    """A line for each format: what it is, and the button or the link to it."""
    return "".join(f"<p>{_offer(jobs, run, form)}</p>" for form in formats())


def serve(demo: gr.Blocks, host: Host) -> None:
    """Answer `download/<file>` with what was packed, for those who may see the pages."""

    async def download(request: Request) -> Response:
        name = request.path_params["name"]
        found = _NAME.fullmatch(name)
        path = packed_path(host, *found.groups()) if found else Path()
        if not path.is_file():
            return Response(say("explore.no_such_file"), status_code=404, media_type="text/plain")
        return FileResponse(path, filename=name, media_type="application/zip")

    add_route(demo, "/download/{name}", download)


def _arguments(run: dict[str, Any], form: str) -> dict[str, Any]:
    return {"run": run["id"], "artifact": run["artifact"], "form": form}


def _offer(jobs: Jobs, run: dict[str, Any], form: str) -> str:
    path = packed_path(jobs.host, run["id"], form)
    if path.is_file():
        told = say("explore.download_file", format=form, size=byte_size(path.stat().st_size))
        return link(told, f"download/{path.name}")
    asked = button(say("explore.pack_as", format=form), f"export-{form}", run["id"])
    try:
        task = results.task(jobs.database, jobs.task_id("export", run["model"], _arguments(run, form)))
    except UserError as error:
        return escape(str(error))
    if task is None or task["status"] in ("done", "cancelled"):
        return asked
    if task["status"] == "failed":
        why = escape(str(task["error"] or "").strip().splitlines()[-1][:300])
        return f'{asked} <span class="bad-ink">{why}</span>'
    return escape(say("explore.is_packed", format=form, state=STATES[task["status"]]))
