"""The map of layers: what it shows of one run, of the difference of two, and of one linear."""

import json

import pytest

from backend.errors import UserError
from store import measurements, results
from ui import run_card
from ui.layer_map import QUANTITIES, differences, seen_by
from ui.pages import layers

QUERY = "model.layers.2.self_attn.q_proj"
OUT = "model.layers.2.self_attn.o_proj"
RTN3, WANDA, EORA = 3, 4, 6


@pytest.fixture
def keep(jobs, filled):
    """Give a made-up run other layers: [(layer, stage, error, bits, sparsity, rank, bytes)]; its id."""
    columns = ("layer", "stage", "error", "bits", "sparsity", "rank", "bytes")

    def write(number, rows):
        written = [
            dict(zip(columns, row, strict=True))
            | {"block": int(row[0].split(".")[2]), "projection": row[0].split(".", 3)[3], "method": "m"}
            for row in rows
        ]
        measurements.save_compression(
            jobs.database, filled[number], artifact="a.safetensors", layers=written, seconds={}, report={}
        )
        return filled[number]

    return write


def look(jobs, *ids, wanted="error"):
    return layers.shown_of(jobs.database, ids, wanted)


def test_the_map_holds_what_the_last_stage_left_of_every_linear_in_the_order_of_the_block(jobs, keep):
    run = keep(
        EORA,
        [
            (OUT, 1, 0.5, 9.0, 0.5, 0, 90),
            (OUT, 2, 0.25, 11.0, 0.5, 64, 110),
            (QUERY, 1, 0.4, 9.0, 0.5, 0, 80),
        ],
    )
    shown = look(jobs, run)
    drawn = json.loads(layers.figure(shown, OUT))
    (trace,) = drawn["data"]
    assert drawn["layout"]["yaxis"]["ticktext"] == ["q_proj", "o_proj"]
    assert trace["z"] == [[None, None, 0.4], [None, None, 0.25]]
    assert trace["customdata"][1][2][0] == OUT
    assert "Rank of what was added  64" in trace["customdata"][1][2][1]
    assert (trace["zmin"], trace["zmax"]) == (0, 0.4)
    assert {(frame["x0"], frame["y0"]) for frame in drawn["layout"]["shapes"]} == {(1.5, 0.5)}


@pytest.mark.parametrize("column", QUANTITIES)
def test_every_quantity_has_a_map(jobs, filled, column):
    drawn = json.loads(layers.figure(look(jobs, filled[1], wanted=column), ""))
    assert drawn["data"][0]["colorbar"]["title"]["text"] == QUANTITIES[column].title
    assert len(drawn["data"][0]["z"][0]) == 6


def test_a_quantity_that_was_not_kept_is_not_offered(jobs, keep):
    run = keep(RTN3, [(QUERY, 1, 0.4, 3.3, None, None, None)])
    shown = look(jobs, run, wanted="rank")
    assert shown.quantity.column == "error"
    assert [quantity.column for quantity in layers.known(shown.cells)] == ["error", "bits"]


def test_a_difference_is_the_second_run_minus_the_first(jobs, keep):
    first = keep(1, [(QUERY, 1, 0.1, 4.3, 0.0, 0, 430), (OUT, 1, 0.2, 4.3, 0.0, 0, 430)])
    second = keep(RTN3, [(QUERY, 1, 0.4, 3.3, 0.0, 0, 330), (OUT, 1, 0.1, 3.3, 0.0, 0, 330)])
    shown = look(jobs, first, second)
    (trace,) = json.loads(layers.figure(shown, ""))["data"]
    assert [row[2] for row in trace["z"]] == pytest.approx([0.3, -0.1])
    assert trace["zmin"] == -trace["zmax"]
    heading = layers.heading(shown)
    assert heading.index("rtn 3-bit") < heading.index("minus") < heading.index("rtn 4-bit")
    side = layers.side(shown, QUERY, jobs.database)
    for told in ("0.100", "0.400", "+0.300", "-1.00", "-100 B"):
        assert told in side


def test_errors_by_different_statistics_are_not_subtracted(jobs, keep):
    # Rounding asks for no text, Wanda for norms, EoRA for the Gram matrix.
    first = keep(WANDA, [(QUERY, 1, 0.4, 9.0, 0.5, 0, 90)])
    second = keep(EORA, [(QUERY, 1, 0.4, 9.0, 0.5, 0, 90), (QUERY, 2, 0.2, 11.0, 0.5, 64, 110)])
    shown = look(jobs, first, second)
    assert shown.quantity.column == "bits"
    assert "different statistics" in layers.heading(shown)
    assert "The errors differ in kind" in layers.side(shown, QUERY, jobs.database)
    assert differences(*shown.tables)["error"].isna().all()


def test_what_an_error_was_measured_by_follows_from_the_stages_that_cover_the_layer():
    stages = [{"method": "quantize.rtn"}, {"method": "compensate.eora", "only": "*.q_proj"}]
    recipe = {"stages": stages}
    # One walk: the Gram matrix that a later stage asked for is there for the earlier one as well.
    assert seen_by(recipe, QUERY, 1) == seen_by(recipe, QUERY, 2) == "outputs"
    assert seen_by(recipe, OUT, 1) == "weights"
    assert seen_by({"stages": [{"method": "prune.wanda"}]}, QUERY, 1) == "norms"
    assert seen_by({"stages": [{"method": "prune.forgotten"}]}, QUERY, 1) == ""


def test_one_linear_tells_every_stage(jobs, keep):
    run = keep(EORA, [(QUERY, 1, 0.4, 9.0, 0.5, 0, 90), (QUERY, 2, 0.2, 11.0, 0.5, 64, 110)])
    side = layers.side(look(jobs, run), QUERY, jobs.database)
    assert "Stage by stage" in side
    for told in ("0.400", "0.200", "50.00 %", "squared error of its outputs"):
        assert told in side
    assert "Choose a cell" in layers.side(look(jobs, run), "model.layers.99.nothing", jobs.database)


def test_equal_runs_say_so(jobs, filled):
    shown = look(jobs, filled[1], filled[RTN3], wanted="bits")
    assert "Both runs are equal in it" in layers.side(shown, "", jobs.database)


def test_what_cannot_be_shown_is_one_sentence(jobs, filled, keep):
    assert look(jobs) is None
    with pytest.raises(UserError, match="one, or the difference of two"):
        look(jobs, *filled[1:4])
    with pytest.raises(UserError, match="no run"):
        look(jobs, "0" * 12)
    with pytest.raises(UserError, match="holds no layers"):
        look(jobs, filled[0])
    other = keep(2, [("model.layers.99.mlp.up_proj", 1, 0.1, 3.3, 0.0, 0, 33)])
    with pytest.raises(UserError, match="different linears"):
        look(jobs, filled[1], other)


def test_names_from_the_store_are_escaped(jobs, keep):
    hostile = "model.layers.0.<script>"
    shown = look(jobs, keep(RTN3, [(hostile, 1, 0.4, 3.3, 0.0, 0, 33)]))
    assert "<script" not in layers.side(shown, hostile, jobs.database)
    drawn = json.loads(layers.figure(shown, hostile))
    assert "<script" not in drawn["data"][0]["customdata"][0][0][1]
    assert "<script" not in drawn["layout"]["yaxis"]["ticktext"][0]


def test_the_card_of_a_run_leads_to_its_layers_and_says_what_its_errors_are(jobs, filled):
    points = results.points(jobs.database)
    rtn, dense = (run_card.card(jobs, filled[number], points) for number in (RTN3, 0))
    assert f"layers?run={filled[RTN3]}" in rtn
    assert "squared error of its weights, relative" in rtn
    assert "layers?run=" not in dense
