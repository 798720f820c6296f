"""Queue: what works, what waits and what ended, the same for every browser; cancel, retry, move, pause."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from store.results import QueuedRun
from ui.live import live
from ui.panel import STATES, address, badge, banner, button, card, figures, link, panel, table, top
from ui.quantities import age, byte_size, duration, is_number, significant
from ui.texts import say
from ui.visitor import user_of

MOST_WAITING, MOST_ENDED = 100, 30
_NOWHERE: Mapping[str, str] = {}
_ENDED = ("done", "failed", "cancelled")
_TONES = {"done": "good", "failed": "bad", "cancelled": "warn", "running": "info"}


def worker_notice(jobs: Jobs, waiting: Sequence[QueuedRun]) -> str:
    """Which workers are alive; how to start one when none is."""
    workers = results.workers(jobs.database, jobs.host.stale_after)
    alive = workers[workers["alive"]]
    if alive.empty:
        last = (
            f" {say('queue.worker_last_seen', age=age(float(workers['heartbeat'].iloc[0])))}"
            if len(workers)
            else ""
        )
        stuck = say("queue.runs_wait") if waiting else ""
        return banner(say("queue.no_worker", stuck=stuck, last=last), "bad")
    told = []
    for worker in alive.to_dict("records"):
        memory = f", {byte_size(worker['memory_bytes'])}" if is_number(worker["memory_bytes"]) else ""
        told.append(
            say(
                "queue.worker_state",
                id=escape(worker["id"]),
                host=escape(worker["host"]),
                device=escape(worker["device"]),
                state=escape(worker["state"]),
                memory=memory,
            )
        )
    return f'<p class="note" id="worker-state">{"; ".join(told)}</p>'


def pause_notice(jobs: Jobs, can_resume: bool = False) -> str:
    """Who paused the queue and since when; empty while it is not."""
    paused = results.switch(jobs.database, "paused")
    if paused is None:
        return ""
    see = f'<a href="queue">{say("queue.see_the_queue")}</a>'
    act_ = button(say("queue.resume"), "resume") if can_resume else see
    who, since = escape(str(paused["by"])), age(paused["since"])
    return banner(f'{say("queue.paused_by", who=who, since=since)} <span class="acts">{act_}</span>')


def working(run: QueuedRun, device: str = "") -> str:
    """The card of a run that works now."""
    fraction = run.fraction if is_number(run.fraction) else None
    counted = say("queue.steps_done", done=run.done, total=run.total) if run.total and run.total > 1 else ""
    numbers = {
        say("queue.done"): f"{100 * fraction:.0f} %" if fraction is not None else "",
        say("queue.left"): say("queue.about_left", time=duration(run.eta_seconds))
        if is_number(run.eta_seconds)
        else "",
        run.stage or say("queue.step"): run.detail or counted,
        say("queue.speed"): say("common.tokens_a_second", speed=significant(run.tokens_per_second, 3))
        if is_number(run.tokens_per_second)
        else "",
        say("queue.memory"): byte_size(run.memory_bytes) if is_number(run.memory_bytes) else "",
        say("queue.running_for"): duration(time.time() - run.started) if run.started else "",
        say("queue.worker"): run.worker or "",
        say("queue.device"): device,
    }
    state = say("queue.being_cancelled") if run.cancel_requested else ""
    width = 100 * (fraction or 0)
    name = f'{badge(STATES["running"], "info")}<span class="note mono">{run.id}</span>'
    acts = button(say("common.log"), "log", run.id) + button(
        say("common.cancel"), "cancel", run.id, danger=True
    )
    return card(
        f"{top(name, acts)}<h3>{escape(run.chain)}</h3>"
        '<p class="note">'
        f"{say('queue.asked_for_by', model=escape(run.model), user=escape(run.user), state=state)}</p>"
        f'<div class="bar" role="progressbar" aria-label="{escape(say("common.progress"))}" aria-valuemin="0"'
        ' aria-valuemax="100"'
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
            button(say("queue.to_the_front"), "front", run.id)
            + button("\N{UPWARDS ARROW}", "up", run.id, hint=say("queue.up_hint"))
            + button("\N{DOWNWARDS ARROW}", "down", run.id, hint=say("queue.down_hint"))
            + button(say("common.cancel"), "cancel", run.id, danger=True)
        )
        told = say("queue.waits_since", id=run.id, model=run.model, user=run.user, created=age(run.created))
        lines.append(
            (
                f'<span class="subtle">{run.position}</span>',
                f'{escape(run.chain)}<br><span class="note">{escape(told)}</span>',
                f'<span class="acts end">{acts}</span>',
            )
        )
    rest = len(waiting) - len(lines)
    note = f'<p class="note">{say("common.and_more", rest=rest)}</p>' if rest else ""
    mine = button(say("queue.cancel_mine"), "cancel-mine", danger=True)
    head = top(f"<h3>{say('queue.count_queued', count=len(waiting))}</h3>", mine)
    return card(f"{head}{table((), lines, numeric_from=2)}{note}", "waiting")


def ended_table(ended: pd.DataFrame) -> str:
    """The last runs that ended, why they failed and what may help."""
    if ended.empty:
        return ""
    lines = []
    for run in ended.to_dict("records"):
        status = "broken" if run["status"] == "done" and isinstance(run["broken"], str) else run["status"]
        acts = button(say("common.log"), "log", run["id"])
        if run["status"] == "done":
            acts += link(say("common.explore"), f"./?{urlencode({'run': run['id']})}")
        else:
            acts += button(say("common.retry"), "retry", run["id"])
        told = say(
            "queue.ended_since",
            id=run["id"],
            model=run["model"],
            user=run["user"],
            finished=age(run["finished"]),
        )
        lines.append(
            (
                badge(STATES[status], "bad" if status == "broken" else _TONES.get(status, "")),
                f'{escape(run["chain"])}<br><span class="note">{escape(told)}</span>{_cause(run)}',
                f'<span class="acts end">{acts}</span>',
            )
        )
    retry = button(say("queue.retry_mine"), "retry-mine") if (ended["status"] == "failed").any() else ""
    head = top(f"<h3>{say('queue.ended_lately')}</h3>", retry)
    return card(f"{head}{table((), lines, numeric_from=2)}", "ended")


def _cause(run: dict[str, Any]) -> str:
    told = run["broken"] if isinstance(run["broken"], str) else run["error"]
    if not isinstance(told, str) or not told.strip():
        return ""
    # Of a traceback the last line says what happened; the log panel has all of it.
    lines = [escape(told.strip().splitlines()[-1][:300])]
    if isinstance(run["suggestion"], str) and run["suggestion"]:
        lines.append(escape(run["suggestion"]))
    return f'<br><span class="bad-ink">{" ".join(lines)}</span>'


def overview(jobs: Jobs, query: Mapping[str, str] = _NOWHERE) -> str:
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
        way = link(say("common.compress_a_model"), "compress")
        body = card(f"<h3>{say('queue.nothing_is_running')}</h3><p>{way}</p>", look="empty") + body
    paused = pause_notice(jobs, can_resume=True)
    pause = (
        ""
        if paused
        else button(
            say("queue.pause_the_queue"),
            "pause",
            hint=say("queue.pause_hint"),
        )
    )
    return f'{paused}<div class="acts top">{worker_notice(jobs, waiting)}{pause}</div>{body}'


def log(jobs: Jobs, query: Mapping[str, str]) -> str:
    """What the run of an address printed, and why it ended if it failed."""
    run_id = query.get("run", "")[:12]
    if not run_id:
        return ""
    run = results.run(jobs.database, run_id)
    if run is None:
        return banner(say("queue.no_such_run", run_id=escape(run_id)), "bad")
    lines = results.log_tail(jobs.database, run_id)
    printed = "\n".join(escape(line) for line in lines["line"])
    failure = ""
    if run["error"]:
        kind = {"user": say("queue.refused"), "killed": say("queue.killed")}.get(
            run["error_kind"], say("queue.a_bug")
        )
        hint = f"<p>{escape(run['suggestion'])}</p>" if run["suggestion"] else ""
        failure = f'<h4>{kind}</h4>{hint}<div class="log">{escape(run["error"])}</div>'
    state = badge(STATES[run["status"]], _TONES.get(run["status"], ""))
    name = f'{state}<span class="note mono">{run["id"]}</span>'
    return card(
        f"{top(name, button(say('common.close'), 'close'))}<h3>{escape(run['chain'])}</h3>{failure}"
        f"<h4>{say('common.log')}</h4>"
        f'<div class="log">{printed or say("queue.nothing_printed")}</div>',
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
            shown = live("queue", 1.5, "queue")
        with gr.Column(scale=3, min_width=320, visible=False) as side:
            told = live("log", 1.5, "log", reads=("run",))
    here = address("address")
    run = gr.State("")

    def opened(request: gr.Request) -> list[Any]:
        chosen = dict(request.query_params).get("run", "")[:12]
        return [overview(jobs), log(jobs, {"run": chosen}), gr.update(visible=bool(chosen)), chosen]

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
        return [
            overview(jobs), log(jobs, {"run": chosen}), gr.update(visible=bool(chosen)), chosen, problem,
            query,
        ]  # fmt: skip

    page.load(opened, None, [shown, told, side, run], **quiet)
    for source in (shown, told):
        source.select(pressed, run, [shown, told, side, run, notice, here], **quiet)
