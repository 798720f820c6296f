"""Compare: one prompt through several compressed models and the dense one, and their numbers side by side."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.errors import UserError
from backend.jobs import Jobs
from store import results
from store.database import Database
from ui.charts import DENSE
from ui.pages.queue import worker_notice
from ui.panel import address, badge, banner, card, panel, table, top
from ui.quantities import MISSING, TITLES, difference, is_number, measured
from ui.visitor import user_of

MOST_RUNS = 4
# The picker offers the newest; older ones come in by link.
_MOST_CHOICES = 400
_OVER = ("done", "failed", "cancelled")
PROMPTS = (
    "The three laws of thermodynamics are",
    "Once upon a time, in a village by the sea,",
    "List three reasons why people sleep:",
    "def fibonacci(n):",
    "La capitale de la France est",
)
Cell = tuple[float | None, bool | None]


def choices(database: Database, selected: Sequence[str]) -> list[tuple[str, str]]:
    """(label, run id) of the runs that can be compared: they have an artifact and are not the dense model."""
    points = results.points(database)
    usable = points[(points["status"] == "done") & points["artifact"].notna() & (points["chain"] != DENSE)]
    usable = usable.drop_duplicates("id")
    usable = pd.concat([usable[usable["id"].isin(list(selected))], usable.head(_MOST_CHOICES)])
    usable = usable.drop_duplicates("id")
    several = usable["model"].nunique() > 1
    return [
        (f"{chain} ({run}{', ' + model if several else ''})", run)
        for run, chain, model in zip(usable["id"], usable["chain"], usable["model"], strict=True)
    ]


def chosen_runs(database: Database, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The runs with these ids, in their order; UserError when one is unknown or of another model."""
    if len(wanted) > MOST_RUNS:
        raise UserError(f"{len(wanted)} runs are chosen; compare at most {MOST_RUNS}")
    found = []
    for run_id in dict.fromkeys(wanted):
        run = results.run(database, run_id)
        if run is None:
            raise UserError(f"there is no run {run_id[:12]!r}")
        found.append(run)
    models = sorted({run["model"] for run in found})
    if len(models) > 1:
        raise UserError(
            f"these runs are of different models ({', '.join(models)}); compare runs of one model"
        )
    return found


def dense_of(database: Database, run: Mapping[str, Any]) -> str:
    """The finished dense run of the same model under the same protocol, if there is one."""
    points = results.points(database)
    own = points[points["id"] == run["id"]]
    same = points[
        (points["model"] == run["model"])
        & (points["protocol"].isin(set(own["protocol"])))
        & (points["chain"] == DENSE)
        & (points["status"] == "done")
    ]
    return str(same["id"].iloc[0]) if len(same) else ""


def numbers(database: Database, runs: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of runs and dense as a table: differences to dense and to the first, the best in bold."""
    if not runs:
        return ""
    dense_id = dense_of(database, runs[0])
    ids = [run["id"] for run in runs]
    found = results.measurements(database, [*ids, dense_id] if dense_id else ids)
    # What has no text compares by the device alone, if it was measured on one.
    found["device"] = [json.loads(stamp).get("device", "") for stamp in found["stamp"]]
    own = found[found["run_id"] == ids[0]]
    like_first = found["comparable"].isin({*own["comparable"], ""})
    like_first &= found["device"].isin({*own["device"], ""})
    found, foreign = found[like_first], found[~like_first & found["run_id"].isin(ids)]
    columns = ([dense_id] if dense_id else []) + ids
    head = ["", *(["dense"] if dense_id else []), *(run["chain"] for run in runs)]
    lines = []
    for metric, title in TITLES.items():
        cells = _cells(found, metric, columns)
        if all(value is None for value, _ in cells.values()):
            continue
        line = [escape(title)]
        best = _best([cells[run_id] for run_id in ids])
        for column in columns:
            value = cells[column][0]
            told = measured(metric, value)
            if column == dense_id:
                line.append(f'<span class="subtle">{told}</span>')
                continue
            bold = ' class="best"' if value is not None and value == best and len(ids) > 1 else ""
            against = [(difference(metric, value, cells[dense_id][0]), "dense")] if dense_id else []
            if column != ids[0]:
                against.append((difference(metric, value, cells[ids[0]][0]), "first"))
            notes = ", ".join(f"{text} to {name}" for text, name in against if text and text != "same")
            line.append(f'<span{bold}>{told}</span><br><span class="subtle">{notes}</span>')
        lines.append(line)
    if not lines:
        return ""
    note = ""
    if len(foreign):
        note = '<p class="note">A dash: measured on another text, windows or device than the first run.</p>'
    return card(f"<h3>Measured</h3>{table(head, lines)}{note}", "numbers")


def _cells(found: pd.DataFrame, metric: str, columns: Sequence[str]) -> dict[str, Cell]:
    rows = found[found["metric"] == metric]
    cells: dict[str, Cell] = dict.fromkeys(columns, (None, None))
    for row in rows.to_dict("records"):
        if is_number(row["value"]):
            lower = row["lower_is_better"]
            cells[row["run_id"]] = (row["value"], None if lower is None or lower != lower else bool(lower))
    return cells


def _best(cells: Sequence[Cell]) -> float | None:
    values = [value for value, _ in cells if value is not None]
    lower = next((direction for _, direction in cells if direction is not None), None)
    if len(values) < 2 or lower is None or len(set(values)) == 1:
        return None
    return min(values) if lower else max(values)


def recipe_differences(runs: Sequence[Mapping[str, Any]]) -> str:
    """Only what differs between the recipes."""
    if len(runs) < 2:
        return ""
    flat = [dict(_leaves(run["recipe"])) for run in runs]
    keys = sorted({key for recipe in flat for key in recipe})
    lines = []
    for key in keys:
        values = [recipe.get(key, MISSING) for recipe in flat]
        if len(set(values)) > 1:
            lines.append([f'<span class="mono">{escape(key)}</span>', *(escape(value) for value in values)])
    if not lines:
        return ""
    head = ["", *(run["chain"] for run in runs)]
    return card(f"<h3>Where the recipes differ</h3>{table(head, lines)}", "recipe-differences")


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)
        ]
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [leaf for at, inner in enumerate(value, start=1) for leaf in _leaves(inner, f"{path} {at}")]
    return [] if value is None else [(path, value if isinstance(value, str) else json.dumps(value))]


def divergence(
    text: str, tokens: Sequence[Sequence[Any]], reference: str, reference_tokens: Sequence[Sequence[Any]]
) -> tuple[int, int] | None:
    """Where in the text the first token stands that the reference does not have, and its length.

    None if the answers are equal. Goes by characters when an answer's pieces do not spell its text.
    """
    pieces = [str(piece) for _, piece in tokens]
    if tokens and reference_tokens and "".join(pieces).startswith(text):
        ids, other = [token for token, _ in tokens], [token for token, _ in reference_tokens]
        if ids == other:
            return None
        at = next((n for n, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), -1)
        if at < 0:
            at = min(len(ids), len(other))
        start = len("".join(pieces[:at]))
        return min(start, len(text)), len(pieces[at]) if at < len(pieces) else 0
    if text == reference:
        return None
    pairs = enumerate(zip(text, reference, strict=False))
    return next((at for at, (mine, other) in pairs if mine != other), min(len(text), len(reference))), 1


def lane(title: str, answer: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    """One answer; what differs from the reference is tinted from the first differing token on."""
    text, status = answer["text"] or "", answer["status"]
    writing = status in ("queued", "running")
    told, body = "", escape(text)
    if reference is not None and text and (reference["text"] or "") and not writing:
        apart = divergence(text, answer["tokens"], reference["text"] or "", reference["tokens"])
        if apart is None:
            told = badge("word for word the same", "good")
        elif reference["status"] == "done":
            start, length = apart
            length = min(length, len(text) - start)
            body = (
                f'{escape(text[:start])}<mark class="first">{escape(text[start : start + length])}</mark>'
                f'<span class="after">{escape(text[start + length :])}</span>'
            )
            count = _shared_tokens(answer["tokens"], reference["tokens"])
            told = badge(f"parts from dense at token {count + 1}", "warn")
    states = {
        "queued": badge("waiting"),
        "running": badge("writing", "info"),
        "failed": badge("failed", "bad"),
    }
    state = states.get(status, badge("cancelled", "warn") if status == "cancelled" else told)
    failure = (
        f'<p class="bad-ink">{escape(str(answer["error"]).strip().splitlines()[-1])}</p>'
        if answer["error"]
        else ""
    )
    caret = ' caret"' if status == "running" else '"'
    head = top(f"<h3>{escape(title)}</h3>", state)
    return (
        f'<div class="lane" data-status="{status}">{head}{failure}<div class="text{caret}>{body}</div></div>'
    )


def _shared_tokens(tokens: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]) -> int:
    count = 0
    for mine, theirs in zip(tokens, other, strict=False):
        if mine[0] != theirs[0]:
            break
        count += 1
    return count


def lanes(jobs: Jobs, group_id: str) -> tuple[str, bool]:
    """All answers of a group side by side, and whether all of them are finished."""
    answers = results.generations(jobs.database, group_id) if group_id else pd.DataFrame()
    if answers.empty:
        return "", True
    rows = answers.astype(object).where(answers.notna(), None).to_dict("records")
    names = {run["id"]: run["chain"] for run in results.runs(
        jobs.database, ids=[row["run_id"] for row in rows if row["run_id"]]
    ).to_dict("records")}  # fmt: skip
    over = all(row["status"] in _OVER for row in rows)
    notice = ""
    if not over and not results.workers(jobs.database, jobs.host.stale_after)["alive"].any():
        notice = worker_notice(jobs, ())
    body = "".join(
        lane(names.get(row["run_id"], DENSE) if row["run_id"] else DENSE, row, rows[0] if number else None)
        for number, row in enumerate(rows)
    )
    prompt = f'<p class="note">Prompt: <span class="mono">{escape(rows[0]["prompt"][:400])}</span></p>'
    return f'{notice}{prompt}<div class="lanes">{body}</div>', over


def build(page: gr.Blocks, jobs: Jobs) -> None:
    """Lay the page out and wire it."""
    database = jobs.database
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            picked = gr.Dropdown(
                [], multiselect=True, max_choices=MOST_RUNS, label="Runs", info="Up to four, of one model",
                elem_id="pick-runs",
            )  # fmt: skip
            prompt = gr.Textbox(
                PROMPTS[0], label="Prompt", lines=3, max_lines=8, max_length=20_000, elem_id="prompt"
            )
            gr.Examples([[text] for text in PROMPTS], [prompt], label="Examples", api_visibility="private")
        with gr.Column(scale=3, min_width=320, elem_id="sampling"):
            with gr.Row():
                temperature = gr.Slider(
                    0, 2, 0, step=0.05, label="Temperature", info="0 is greedy", min_width=140
                )
                top_p = gr.Slider(
                    0.05, 1, 1, step=0.05, label="Top p", info="Only with a temperature", min_width=140
                )
            with gr.Row():
                most = gr.Slider(8, 512, 96, step=8, label="New tokens", min_width=140, elem_id="max-tokens")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=140)
            with gr.Row():
                chat = gr.Checkbox(
                    label="As a chat message", info="Inside the model's own template", min_width=140
                )
                dense = gr.Checkbox(
                    True, label="With the dense model", info="First, as the reference", min_width=140
                )
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
    problem = panel("compare-problem")
    written = panel("lanes")
    told = panel("compare-numbers")
    here = address("address")
    group = gr.State("")
    timer = gr.Timer(0.6, active=False)

    def below(ids: Sequence[str]) -> list[Any]:
        try:
            runs = chosen_runs(database, ids)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), ""]
        if not runs:
            return ["", _HOW]
        return ["", numbers(database, runs) + recipe_differences(runs)]

    def query(ids: Sequence[str], group_id: str) -> str:
        told_ = {"runs": ",".join(ids), "group": group_id}
        return "?" + urlencode({key: value for key, value in told_.items() if value}, safe=",")

    def opened(request: gr.Request) -> list[Any]:
        asked = dict(request.query_params)
        ids = [run for run in asked.get("runs", "").split(",") if run][:MOST_RUNS]
        known = choices(database, ids)
        usable = [run for run in ids if run in {run_id for _, run_id in known}]
        group_id = asked.get("group", "")[:32]
        text, over = lanes(jobs, group_id)
        unknown = [run for run in ids if run not in usable]
        notice, table_ = below(usable)
        if unknown:
            notice = banner(f"There is no finished run {escape(', '.join(unknown))}.", "bad")
        return [
            gr.update(choices=known, value=usable), notice, table_, text, group_id,
            gr.Timer(active=not over), gr.update(interactive=not over),
        ]  # fmt: skip

    def chosen(ids: list[str], group_id: str) -> list[Any]:
        return [*below(ids or []), query(ids or [], group_id)]

    def generate(
        request: gr.Request, ids: list[str], text: str, with_dense: bool, *sampling: Any
    ) -> list[Any]:
        keys = ("temperature", "top_p", "max_tokens", "seed", "chat")
        settings = dict(zip(keys, sampling, strict=True))
        settings |= {"max_tokens": int(settings["max_tokens"] or 0), "seed": int(settings["seed"] or 0)}
        try:
            user = user_of(request, jobs.host)
            runs = chosen_runs(database, ids or [])
            if not runs:
                raise UserError("choose at least one run to compare with the dense model")
            wanted: list[str | None] = [None] if with_dense else []
            wanted += [run["id"] for run in runs]
            group_id = jobs.generate(runs[0]["model"], wanted, text or "", settings, user)
        except UserError as error:
            return [banner(escape(str(error)), "bad"), *(gr.skip() for _ in range(5))]
        shown, _ = lanes(jobs, group_id)
        return ["", shown, group_id, gr.Timer(active=True), gr.update(interactive=True), query(ids, group_id)]

    def tick(group_id: str) -> list[Any]:
        shown, over = lanes(jobs, group_id)
        return [shown, gr.Timer(active=False) if over else gr.skip(), gr.update(interactive=not over)]

    def cancel(request: gr.Request, group_id: str) -> None:
        user_of(request, jobs.host)
        if group_id:
            jobs.cancel_generation(group_id)

    page.load(opened, None, [picked, problem, told, written, group, timer, stop], **quiet)
    picked.input(chosen, [picked, group], [problem, told, here], **quiet)
    asked = [picked, prompt, dense, temperature, top_p, most, seed, chat]
    start.click(generate, asked, [problem, written, group, timer, stop, here], **quiet)
    timer.tick(tick, group, [written, timer, stop], concurrency_limit=None, **quiet)
    stop.click(cancel, group, None, **quiet)


_HOW = card(
    "<h3>Choose runs to compare</h3><p>Pick up to four compressed models above, or open one on Explore and "
    "follow its Compare link. All of them answer the same prompt beside the dense model; where an answer "
    'leaves the dense one is marked, token by token.</p><p class="note">Their measurements and the '
    "differences between their recipes appear here.</p>",
    "how-to-compare",
)
