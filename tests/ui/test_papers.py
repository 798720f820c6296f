"""Claims on the page: what is queued, what the verdicts say, what stands there until there is one."""

import html
import json

import pytest

from backend.claims import recipes
from backend.recipe import Calibration, Evaluation
from backend.solvers import student
from store import measurements, results, runs
from tests.tiny import make_model
from tests.ui import made_up
from ui import shipped_claims
from ui.claim_card import citation, claim_card, state
from ui.pages import papers
from ui.standings import claiming, standings

ADADIM = "quantize.adadim"
WANDA, GPTQ, SVD = "prune.wanda", "quantize.gptq", "compensate.svd"


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tiny):
    """A model that groups of 64 divide and that reads 1024 tokens, and a text: (model, text, effort)."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 1024,
        "num_hidden_layers": 5,
    }  # fmt: skip
    return str(make_model(folder / "model", **sizes)), tiny.text, "quick"


@pytest.fixture
def stand(jobs, wide):
    """The claims on the wide model now, by method."""

    def now():
        found = standings(jobs.database, jobs.host, *wide)
        return {standing.method.id: standing for standing in found}

    return now


def begin(jobs, side):
    """Let a worker start the side's run, asking for it first where nobody did; its ticket."""
    jobs.submit(side.recipe)
    ticket = results.run(jobs.database, side.run_id)["ticket"]
    runs.start_run(jobs.database, side.run_id, ticket, "local")
    return ticket


def finish(jobs, side, windows, packed=100e6, perplexity=20.0, broken=None, device="cpu"):
    """Put the side's run into the store as a worker leaves it."""
    ticket = begin(jobs, side)
    database, stamp = jobs.database, made_up.STAMP | {"device": device}
    measurements.save_compression(
        database, side.run_id, artifact=f"{side.run_id}.safetensors", layers=[], seconds={}, report={}
    )
    measurements.save_measurements(
        database,
        side.run_id,
        measurements=[
            made_up.number("perplexity", perplexity, stamp, 0.5),
            made_up.number("size.packed", packed, {}),
        ],
        series=[{"name": "perplexity.windows", "protocol": stamp, "values": windows}] if windows else [],
        broken=broken,
    )
    runs.finish_run(database, side.run_id, ticket, "local", "done")


def test_there_is_a_card_for_every_claim_with_its_citation_and_a_button(jobs, wide):
    markup = papers.overview(jobs, *wide, {})
    for method, claim in claiming():
        assert f'id="claim-{method.id}"' in markup
        assert f'data-action="test" data-run="{method.id}"' in markup
        assert claim.text.split("'")[0] in markup
    assert "arXiv 2210.17323" in markup
    assert "Frantar et al., GPTQ, arXiv 2210.17323." in markup
    assert f"<b>{len(claiming())}</b> not tested" in markup


def test_a_claim_queues_exactly_the_runs_it_needs_and_nothing_twice(jobs, wide, stand):
    assert papers.queue_missing(jobs, *wide, GPTQ, "ada") == {}
    queued = results.queue(jobs.database)
    assert [run.chain for run in queued] == ["gptq 3-bit g64", "rtn 3-bit g64"]
    assert {run.user for run in queued} == {"ada"}
    assert state(stand()[GPTQ]) == "queued"
    # Rounding to 3 bits is queued already, for the other claim.
    assert papers.queue_missing(jobs, *wide, SVD, "ada") == {}
    assert papers.queue_missing(jobs, *wide, GPTQ, "ada") == {}
    assert [run.chain for run in results.queue(jobs.database)][2:] == ["rtn 3-bit g64 → svd r64"]
    wanted = sum(len(standing.wanted) for standing in stand().values())
    assert papers.queue_missing(jobs, *wide, "all", "ada") == {}
    assert not any(standing.wanted for standing in stand().values())
    assert 3 < len(results.queue(jobs.database)) <= 3 + wanted


def test_a_verdict_comes_with_its_numbers_noise_and_links(jobs, stand):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, [2.9, 3.8, 1.7, 2.8], perplexity=16.4)
    assert state(stand()[WANDA]) == "not tested"
    assert "(1 run)" in claim_card(stand()[WANDA])
    finish(jobs, worse, [3.0, 4.0, 2.0, 3.0], perplexity=20.1)
    markup = claim_card(stand()[WANDA])
    # Differences -0.1, -0.2, -0.3, -0.2.
    for told in (
        'data-verdict="holds"', "is lower by <b>0.200 ± 0.041</b>", "4 windows: beyond the 95 % interval",
        "at the same bytes", "16.40 ± 0.50", "20.10 ± 0.50", f"./?run={better.run_id}",
        f"compare?runs={better.run_id},{worse.run_id}",
    ):  # fmt: skip
        assert told in markup
    assert markup.count('class="dot"') == 4
    assert 'data-action="test"' not in markup


@pytest.mark.parametrize(
    ("windows", "packed", "word", "said"),
    [
        ([3.1, 4.1, 2.1, 3.2], 100e6, "does not hold", "is higher by <b>0.125"),
        ([2.9, 4.1, 1.9, 3.1], 100e6, "within noise", "within the 95 % interval"),
        ([2.0, 3.0, 1.0, 2.1], 101e6, "does not hold", "1.0 MB more, which the claim does not allow"),
        ([2.0, 3.0, 1.0, 2.1], 99e6, "holds", "with 1.0 MB less"),
    ],
)
def test_every_verdict_says_why(jobs, stand, windows, packed, word, said):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, windows, packed)
    finish(jobs, worse, [3.0, 4.0, 2.0, 3.0])
    assert state(stand()[WANDA]) == word
    assert said in claim_card(stand()[WANDA])


def test_a_claim_about_what_bytes_buy_states_them(jobs, stand):
    better, worse = stand()[SVD].sides
    finish(jobs, better, [2.0, 3.0, 1.0, 2.1], 120e6)
    finish(jobs, worse, [3.0, 4.0, 2.0, 3.0])
    assert "with 20.0 MB more, as the claim says" in claim_card(stand()[SVD])


def test_a_collapsed_run_is_named_with_its_cause(jobs, stand):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, [3.0, 4.0])
    finish(jobs, worse, [], broken="the loss is NaN")
    markup = claim_card(stand()[WANDA])
    assert state(stand()[WANDA]) == "baseline broken"
    assert f"{worse.recipe.chain()}: the loss is NaN. A model that does not work" in markup


def test_a_claim_does_not_hold_against_a_broken_run_however_much_more_that_one_loses(jobs, stand):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, [3.0, 4.0])
    finish(jobs, worse, [7.0, 8.1], broken="it writes in loops")
    markup = claim_card(stand()[WANDA])
    assert state(stand()[WANDA]) == "baseline broken"
    assert f"{worse.recipe.chain()}: it writes in loops. A model that does not work" in markup
    assert "is lower by" not in markup
    assert "holds" not in markup


def test_few_windows_need_a_wider_interval_in_the_sentence_too(jobs, stand):
    better, worse = stand()[WANDA].sides
    # Mean -0.25, error 0.1: beyond two errors, within the 3.18 of four windows.
    spread = 0.1 * 3**0.5
    finish(jobs, better, [2.75 - spread, 2.75 + spread, 2.75 - spread, 2.75 + spread])
    finish(jobs, worse, [3.0, 3.0, 3.0, 3.0])
    assert state(stand()[WANDA]) == "within noise"
    assert "is lower by <b>0.250 ± 0.10" in claim_card(stand()[WANDA])
    assert "within the 95 % interval" in claim_card(stand()[WANDA])


def test_a_card_says_whose_the_claim_is_and_what_the_paper_says_itself(stand):
    found = stand()
    assert {standing.claim.whose for standing in found.values()} == {"paper", "ours"}
    for standing in found.values():
        markup = claim_card(standing)
        ours = standing.claim.whose == "ours"
        assert ("our comparison" in markup) == ours
        assert ("the paper&#x27;s claim" in markup) == (not ours)
        assert html.unescape(markup).count(f"The paper: {standing.claim.paper_says}") == ours


def test_a_broken_run_is_not_the_better_one(jobs, stand):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, [3.0, 4.0], broken="it writes in loops")
    finish(jobs, worse, [7.0, 8.1])
    assert state(stand()[WANDA]) == "broken"


def test_runs_of_different_devices_are_not_compared(jobs, stand):
    better, worse = stand()[WANDA].sides
    finish(jobs, better, [2.0, 3.0], device="cuda")
    finish(jobs, worse, [3.0, 4.0])
    assert state(stand()[WANDA]) == "not tested"
    assert "under different protocols" in claim_card(stand()[WANDA])


def test_a_run_under_way_shows_how_far_it_is_and_a_failed_one_why(jobs, wide, stand):
    better, worse = stand()[WANDA].sides
    ticket = begin(jobs, better)
    runs.report_progress(jobs.database, better.run_id, ticket, "local", stage="compress", fraction=0.4)
    assert state(stand()[WANDA]) == "running"
    assert 'aria-valuenow="40"' in claim_card(stand()[WANDA])
    runs.finish_run(jobs.database, better.run_id, ticket, "local", "failed", error="x\nValueError: <b>no")
    markup = claim_card(stand()[WANDA])
    assert state(stand()[WANDA]) == "failed"
    assert "ValueError: &lt;b&gt;no" in markup
    assert "Try again (2 runs)" in markup
    papers.queue_missing(jobs, *wide, WANDA, "ada")
    assert {run.id for run in results.queue(jobs.database)} == {better.run_id, worse.run_id}


def test_a_claim_that_does_not_fit_the_model_says_so_on_its_card(jobs, tiny):
    narrow = (tiny.model, tiny.text, "quick")
    problems = papers.queue_missing(jobs, *narrow, "all", "ada")
    assert "group_size is 64, which does not divide" in problems[ADADIM]
    assert problems[ADADIM] in papers.overview(jobs, *narrow, problems)
    assert results.queue(jobs.database) == []


def test_a_model_or_text_that_is_not_there_is_one_sentence(jobs, wide):
    markup = papers.overview(jobs, "/nowhere/<b>", *wide[1:], {})
    assert "&lt;b&gt;" in markup
    assert "banner bad" in markup
    assert "claim-" not in markup
    assert papers.queue_missing(jobs, "/nowhere", *wide[1:], "all", "ada")["all"]


def test_one_file_for_both_texts_is_warned_of(jobs, wide):
    assert "read the same file" in papers.overview(jobs, *wide, {})


def test_an_address_with_nonsense_falls_back_to_the_default():
    usual = papers._settled([])
    assert papers._settled([None, "", "eternal"]) == usual
    assert papers._settled(["m", "t", "full"]) == ("m", "t", "full")
    assert usual[2] == "quick"


def test_every_citation_is_short_and_names_its_paper():
    for method, _ in claiming():
        number = method.paper.removeprefix("arXiv:").removeprefix("https://").strip("/")
        markup = citation(method)
        assert number in markup.split("<a")[0]
        assert len(markup.split("<a")[0]) < 160


def test_every_shipped_verdict_is_about_a_claim_that_is_made_now_and_follows_from_its_figures():
    made = dict((method.id, claim) for method, claim in claiming())
    assert len(shipped_claims.rows()) >= 7
    for name, row in shipped_claims.rows().items():
        claim = made[name]
        said = (row["claim"], row["whose"], row["paper_says"])
        assert said == (claim.text, claim.whose, claim.paper_says)
        evaluation = Evaluation.model_validate_json(json.dumps(row["evaluation"]))
        pair = recipes(claim, row["model"], Calibration(**row["calibration"]), evaluation)
        assert [recipe.chain() for recipe in pair] == [row[side]["chain"] for side in ("better", "worse")]
        if row["better"]["broken"] or row["worse"]["broken"]:
            told = "broken" if row["better"]["broken"] else "baseline broken"
            assert (row["verdict"], row["difference"], row["stderr"]) == (told, None, None)
            continue
        dear = row["better"]["size.packed"] > row["worse"]["size.packed"] and not claim.more_bytes
        reach = student.reach(row["windows"]) * row["stderr"]
        if dear or row["difference"] > reach:
            assert row["verdict"] == "does not hold"
        else:
            assert row["verdict"] == ("holds" if row["difference"] < -reach else "within noise")


def test_a_claim_nobody_tested_shows_what_this_version_measured_until_it_is_tested(
    jobs, stand, wide, monkeypatch
):
    assert "when this version was made" not in claim_card(stand()[GPTQ])
    row = shipped_claims.rows()[GPTQ]
    model, text, _ = wide
    here = {**row, "model": model, "calibration": {**row["calibration"], "text": text}}
    monkeypatch.setattr(shipped_claims, "rows", lambda: {GPTQ: here})
    shown = claim_card(stand()[GPTQ])
    assert f"29.53 against 39.39, {row['difference']:+.3f} ± {row['stderr']:.3f} nats a token" in shown
    assert "24 windows of 2048 tokens, 64 x 512 of calibration" in shown
    other = {**here, "better": {**row["better"], "chain": "gptq 2-bit g64"}}
    monkeypatch.setattr(shipped_claims, "rows", lambda: {GPTQ: other})
    assert "when this version was made" not in claim_card(stand()[GPTQ])
    monkeypatch.setattr(shipped_claims, "rows", lambda: {GPTQ: here})
    for side in stand()[GPTQ].sides:
        finish(jobs, side, [3.0, 4.0])
    assert "when this version was made" not in claim_card(stand()[GPTQ])
