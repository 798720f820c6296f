"""Queue: what works, what waits and what ended, the same for every browser; cancel, retry, move, pause."""

import time
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from store.results import QueuedRun
from ui.panel import address, badge, banner, button, card, figures, link, panel, table, top
from ui.quantities import age, byte_size, duration, is_number, significant
from ui.visitor import user_of

MOST_WAITING, MOST_ENDED = 100, 30
_ENDED = ("done", "failed", "cancelled")
_TONES = {"done": "good", "failed": "bad", "cancelled": "warn", "running": "info"}


def worker_notice(jobs: Jobs, waiting: Sequence[QueuedRun]) -> str:
    """Which workers are alive; how to start one when none is."""
    workers = results.workers(jobs.database, jobs.host.stale_after)
    alive = workers[workers["alive"]]
    if alive.empty:
        last = f" The last one was seen {age(float(workers['heartbeat'].iloc[0]))}." if len(workers) else ""
        stuck = "Runs stay queued until one starts." if waiting else ""
        return banner(
            f"<b>No worker is alive.</b> {stuck}{last} Start one with <code>python app.py worker</code>.",
            "bad",
        )
    told = []
    for worker in alive.to_dict("records"):
        memory = f", {byte_size(worker['memory_bytes'])}" if is_number(worker["memory_bytes"]) else ""
        told.append(
            f"Worker <b>{escape(worker['id'])}</b> on {escape(worker['host'])} ({escape(worker['device'])}): "
            f"{escape(worker['state'])}{memory}"
        )
    return f'<p class="note" id="worker-state">{"; ".join(told)}</p>'


def pause_notice(jobs: Jobs, can_resume: bool = False) -> str:
    """Who paused the queue and since when; empty while it is not."""
    paused = results.switch(jobs.database, "paused")
    if paused is None:
        return ""
    act_ = button("Resume", "resume") if can_resume else '<a href="queue">See the queue</a>'
    who, since = escape(str(paused["by"])), age(paused["since"])
    return banner(
        f"<b>Paused by {who}, {since}.</b> A run under way finishes, no other starts. "
        f'Moving and cancelling still count. <span class="acts">{act_}</span>'
    )


def working(run: QueuedRun, device: str = "") -> str:
    """The card of a run that works now."""
    fraction = run.fraction if is_number(run.fraction) else None
    counted = f"{run.done} of {run.total}" if run.total and run.total > 1 else ""
    numbers = {
        "done": f"{100 * fraction:.0f} %" if fraction is not None else "",
        "left": f"about {duration(run.eta_seconds)}" if is_number(run.eta_seconds) else "",
        run.stage or "step": run.detail or counted,
        "speed": f"{significant(run.tokens_per_second, 3)} tok/s" if is_number(run.tokens_per_second) else "",
        "memory": byte_size(run.memory_bytes) if is_number(run.memory_bytes) else "",
        "running for": duration(time.time() - run.started) if run.started else "",
        "worker": run.worker or "",
        "device": device,
    }
    state = "; being cancelled" if run.cancel_requested else ""
    width = 100 * (fraction or 0)
    name = f'{badge("running", "info")}<span class="note mono">{run.id}</span>'
    acts = button("Log", "log", run.id) + button("Cancel", "cancel", run.id, danger=True)
    return card(
        f"{top(name, acts)}<h3>{escape(run.chain)}</h3>"
        f'<p class="note">{escape(run.model)}, asked for by {escape(run.user)}{state}</p>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{width:.0f}"><i style="width:{width:.1f}%"></i></div>'
        f"{figures({label: value for label, value in numbers.items() if value})}",
        f"running-{run.id}",
    )


def waiting_table(waiting: Sequence[QueuedRun]) -> str:
    """The queued runs in the order in which they will run."""
    if not waiting:
        return ""
    lines = []
    for run in waiting[:MOST_WAITING]:
        acts = (
            button("To the front", "front", run.id)
            + button("\N{UPWARDS ARROW}", "up", run.id, hint="Run one place earlier")
            + button("\N{DOWNWARDS ARROW}", "down", run.id, hint="Run one place later")
            + button("Cancel", "cancel", run.id, danger=True)
        )
        told = f"{run.id}, {run.model}, by {run.user}, {age(run.created)}"
        lines.append(
            (
                f'<span class="subtle">{run.position}</span>',
                f'{escape(run.chain)}<br><span class="note">{escape(told)}</span>',
                f'<span class="acts end">{acts}</span>',
            )
        )
    rest = len(waiting) - len(lines)
    note = f'<p class="note">and {rest} more</p>' if rest else ""
    mine = button("Cancel all of mine", "cancel-mine", danger=True)
    head = top(f"<h3>{len(waiting)} queued</h3>", mine)
    return card(f"{head}{table((), lines, numeric_from=2)}{note}", "waiting")


def ended_table(ended: pd.DataFrame) -> str:
    """The last runs that ended, why they failed and what may help."""
    if ended.empty:
        return ""
    lines = []
    for run in ended.to_dict("records"):
        status = "broken" if run["status"] == "done" and isinstance(run["broken"], str) else run["status"]
        acts = button("Log", "log", run["id"])
        if run["status"] == "done":
            acts += link("Explore", f"./?{urlencode({'run': run['id']})}")
        else:
            acts += button("Retry", "retry", run["id"])
        told = f"{run['id']}, {run['model']}, by {run['user']}, {age(run['finished'])}"
        lines.append(
            (
                badge(status, "bad" if status == "broken" else _TONES.get(status, "")),
                f'{escape(run["chain"])}<br><span class="note">{escape(told)}</span>{_cause(run)}',
                f'<span class="acts end">{acts}</span>',
            )
        )
    retry = button("Retry all failed of mine", "retry-mine") if (ended["status"] == "failed").any() else ""
    return card(f"{top('<h3>Ended lately</h3>', retry)}{table((), lines, numeric_from=2)}", "ended")


def _cause(run: dict[str, Any]) -> str:
    told = run["broken"] if isinstance(run["broken"], str) else run["error"]
    if not isinstance(told, str) or not told.strip():
        return ""
    # Of a traceback the last line says what happened; the log panel has all of it.
    lines = [escape(told.strip().splitlines()[-1][:300])]
    if isinstance(run["suggestion"], str) and run["suggestion"]:
        lines.append(escape(run["suggestion"]))
    return f'<br><span class="bad-ink">{" ".join(lines)}</span>'


def overview(jobs: Jobs) -> str:
    """The whole queue as markup."""
    everything = results.queue(jobs.database)
    running = [run for run in everything if run.status == "running"]
    waiting = [run for run in everything if run.status == "queued"]
    ended = results.runs(jobs.database, statuses=_ENDED, limit=5 * MOST_ENDED)
    ended = ended.sort_values("finished", ascending=False, kind="stable").head(MOST_ENDED)
    workers = results.workers(jobs.database, jobs.host.stale_after)
    devices = dict(zip(workers["id"], workers["device"], strict=True))
    body = "".join(working(run, devices.get(run.worker, "")) for run in running)
    body += waiting_table(waiting) + ended_table(ended)
    if not everything:
        way = link("Compress a model", "compress")
        body = card(f"<h3>Nothing is running</h3><p>{way}</p>", look="empty") + body
    paused = pause_notice(jobs, can_resume=True)
    pause = (
        ""
        if paused
        else button(
            "Pause the queue",
            "pause",
            hint="No other run starts until somebody resumes the queue; everybody who may log in may do both",
        )
    )
    return f'{paused}<div class="acts top">{worker_notice(jobs, waiting)}{pause}</div>{body}'


def log(jobs: Jobs, run_id: str) -> str:
    """What one run printed, and why it ended if it failed."""
    if not run_id:
        return ""
    run = results.run(jobs.database, run_id)
    if run is None:
        return banner(f"There is no run {escape(run_id)}.", "bad")
    lines = results.log_tail(jobs.database, run_id)
    printed = "\n".join(escape(line) for line in lines["line"])
    failure = ""
    if run["error"]:
        kind = {"user": "What was asked cannot be done", "killed": "The work was killed"}.get(
            run["error_kind"], "A bug: please report it with these lines"
        )
        hint = f"<p>{escape(run['suggestion'])}</p>" if run["suggestion"] else ""
        failure = f'<h4>{kind}</h4>{hint}<div class="log">{escape(run["error"])}</div>'
    name = f'{badge(run["status"], _TONES.get(run["status"], ""))}<span class="note mono">{run["id"]}</span>'
    return card(
        f"{top(name, button('Close', 'close'))}<h3>{escape(run['chain'])}</h3>{failure}<h4>Log</h4>"
        f'<div class="log">{printed or "Nothing has been printed yet."}</div>',
        "log-card",
    )


def act(jobs: Jobs, action: str, run_id: str, user: str) -> None:
    """Do what a button says; UserError when it may not or cannot be done."""
    if action == "cancel":
        jobs.cancel(run_id, user)
    elif action == "retry":
        jobs.retry(run_id, user)
    elif action == "cancel-mine":
        jobs.cancel_mine(user)
    elif action == "retry-mine":
        jobs.retry_mine(user)
    elif action in ("up", "down"):
        jobs.move(run_id, -1 if action == "up" else 1, user)
    elif action == "front":
        jobs.move_to_front(run_id, user)
    elif action == "pause":
        jobs.pause(user)
    elif action == "resume":
        jobs.resume()


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    notice = panel("queue-notice")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            shown = panel("queue")
        with gr.Column(scale=3, min_width=320, visible=False) as side:
            told = panel("log")
    here = address("address")
    run, seen = gr.State(""), gr.State(-1)
    timer = gr.Timer(1.5)

    def opened(request: gr.Request) -> list[Any]:
        chosen = dict(request.query_params).get("run", "")[:12]
        version = results.data_version(jobs.database)
        return [overview(jobs), log(jobs, chosen), gr.update(visible=bool(chosen)), chosen, version]

    def tick(before: int, chosen: str, ticks: float) -> Any:
        version = results.data_version(jobs.database)
        # Ages and the worker's silence grow without a write, so now and then the page is drawn anyway.
        if version == before and time.time() - ticks < 10:
            return gr.skip()
        return [overview(jobs), log(jobs, chosen) if chosen else gr.skip(), version, time.time()]

    def pressed(event: gr.EventData, request: gr.Request, chosen: str) -> list[Any]:
        problem = ""
        if event.action in ("log", "close"):
            chosen = str(event.run)[:12] if event.action == "log" else ""
        else:
            try:
                act(jobs, str(event.action), str(event.run)[:12], user_of(request, jobs.host))
            except UserError as error:
                problem = banner(escape(str(error)), "bad")
        query = f"?{urlencode({'run': chosen})}" if chosen else "?"
        return [overview(jobs), log(jobs, chosen), gr.update(visible=bool(chosen)), chosen, problem, query]

    drawn_at = gr.State(0.0)
    page.load(opened, None, [shown, told, side, run, seen], **quiet)
    timer.tick(
        tick, [seen, run, drawn_at], [shown, told, seen, drawn_at], concurrency_limit=None, **quiet
    )  # fmt: skip
    for source in (shown, told):
        source.select(pressed, run, [shown, told, side, run, notice, here], **quiet)
