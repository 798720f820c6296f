"""The Surgery page: the map of costs, one cell, an operation on its way and what came of it."""

import pytest

from backend.assets import model_folder
from backend.errors import UserError
from backend.facts import facts
from backend.levels import standard
from store import results, tasks
from tests.tiny import make_model
from tests.ui import made_up
from ui import learned
from ui.operation import cell, cost_map, history, outcome, predicted
from ui.pages.surgery import chain_of
from ui.recipe_form import edited, staged

MODEL = made_up.MODEL
GPTQ = [{"method": "quantize.gptq", "params": {"bits": 2, "group_size": 16}}]


@pytest.fixture
def layout(host):
    make_model(model_folder(host))
    return facts(MODEL, host)


@pytest.fixture
def found(jobs, layout):
    """What levels of the small model cost, as a task told it; each linear more than the one before."""
    levels = standard(layout.layers)
    names = list(layout.layers)
    result = {
        "model": MODEL,
        "calibration": learned.asked("wikipedia-en")["calibration"],
        "levels": [{"name": level.name, "stages": list(level.stages)} for level in levels],
        "layers": names,
        "places": [list(layout.family.place(name)) for name in names],
        "weights": [1024] * len(names),
        "bytes": [[1024 - 10 * number for number in range(len(levels))] for _ in names],
        "errors": [[0.001 * number for number in range(len(levels))] for _ in names],
        "losses": [[1e-4 * number * 2**at for number in range(len(levels))] for at in range(len(names))],
        "rest_bytes": 1000,
        "protocol": {},
    }
    _tell(jobs, "levels", learned.asked("wikipedia-en"), result)
    return learned.budget_of(jobs, MODEL, "wikipedia-en")


def _tell(jobs, kind, arguments, result, status="done", error=None):
    task_id = jobs.task_id(kind, MODEL, arguments)
    attempt = tasks.ask(
        jobs.database, task_id=task_id, kind=kind, model=MODEL, arguments=arguments, user="ada"
    )
    tasks.start(jobs.database, task_id, attempt, "w")
    tasks.finish(jobs.database, task_id, attempt, status, result=result, error=error)
    return results.task(jobs.database, task_id)


def operated(jobs, layer, **fields):
    arguments = {"layer": layer, "stages": GPTQ, **learned.asked("wikipedia-en")}
    result = {
        "layer": layer, "chain": f"gptq 2-bit g16 on {layer}", "kl": 0.0123, "kl_stderr": 0.0009,
        "agreement": 0.97, "perplexity": 14.2, "dense_perplexity": 13.04, "tokens": 2044, "error": 0.14,
        "bits": 2.3, "sparsity": 0.0, "rank": 0, "bytes": 300, "dense_bytes": 2048, "seconds": 3.2,
        "answers": [
            {"prompt": "The capital", "dense": " of France is Paris", "changed": " of France is <b>Rome</b>"},
            {"prompt": "Water", "dense": " boils", "changed": " boils"},
        ],
        **fields,
    }  # fmt: skip
    return _tell(jobs, "surgery", arguments, result)


def test_the_map_shows_what_each_linear_is_predicted_to_cost(layout, found):
    figure = cost_map(layout, found, 11, next(iter(layout.layers)))
    (heat,) = figure["data"]
    values = [value for row in heat["z"] for value in row]
    assert len(values) == 14
    assert max(values) - min(values) == pytest.approx(13 * 0.30103, abs=1e-3)
    assert "2:4, 3-bit g32" in heat["colorbar"]["title"]["text"]
    assert len(figure["layout"]["shapes"]) == 2


def test_without_predictions_every_cell_can_still_be_chosen(layout):
    (heat,) = cost_map(layout, None, 0, "")["data"]
    assert all(value is not None for row in heat["z"] for value in row)
    assert {told[0] for row in heat["customdata"] for told in row} == set(layout.layers)


def test_a_cell_tells_all_its_levels_and_an_unknown_one_how_to_begin(layout, found):
    name = next(iter(layout.layers))
    shown = cell(layout, found, name)
    assert all(level.name in shown for level in found.levels)
    assert "Choose a cell" in cell(layout, found, "<script>")


def test_an_operation_on_a_level_stands_beside_its_prediction(jobs, layout, found):
    name = next(iter(layout.layers))
    task = operated(jobs, name)
    guess = predicted(found, name, GPTQ)
    assert guess == found.losses[0][[level.name for level in found.levels].index("2-bit g16")]
    shown = outcome(task, found)
    for told in ("0.0123", "14.2", "13.0", "predicted", "word for word the same", "15 %", "2044 tokens"):
        assert told in shown
    assert "<b>Rome" not in shown
    assert "&lt;b&gt;Rome" in shown


def test_an_operation_that_is_no_level_has_no_prediction(found, layout):
    name = next(iter(layout.layers))
    assert predicted(found, name, [{"method": "prune.wanda", "params": {"sparsity": 0.3}}]) is None
    assert predicted(None, name, GPTQ) is None


def test_a_failed_operation_says_why(jobs, layout):
    arguments = {"layer": "x", "stages": GPTQ, **learned.asked("wikipedia-en")}
    task = _tell(jobs, "surgery", arguments, None, "failed", "surgery: 'x' is no linear")
    assert "is no linear" in outcome(task, None)
    assert outcome(None, None) == ""


def test_the_operations_of_a_visit_are_listed_last_first(jobs, layout):
    first, second = list(layout.layers)[:2]
    ids = [operated(jobs, first)["id"], operated(jobs, second, kl=0.5)["id"]]
    shown = history(jobs.database, ids, None)
    assert shown.index(second) < shown.index(first)
    assert history(jobs.database, ids[:1], None) == ""


def test_the_form_becomes_the_stages_of_the_operation():
    stages = staged([{"method": "quantize.gptq", "params": {"bits": 2}}])
    assert chain_of(stages)[0]["params"]["bits"] == 2
    with pytest.raises(UserError, match="bits names several values"):
        chain_of(edited(stages, 0, "bits", "2, 3"))
    pruned = staged([{"method": "prune.wanda", "params": {"pattern": "2:4"}}])
    assert "sparsity" not in chain_of(pruned)[0]["params"]
