import itertools

import pytest

from backend.facts import facts
from backend.headway import Headway, parts_of, seconds_of
from backend.pipeline import compress
from backend.progress import Update
from backend.recipe import parse_recipe
from backend.shrink import shrunk
from tests.tiny import make_model, make_text

RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}
HALF = {"method": "prune.wanda", "params": {"pattern": "2:4"}}
EORA = {"method": "compensate.eora", "params": {"rank": 4}}
SEARCH = {"method": "allocate.evopress", "params": {"generations": 4, "offspring": 4, "windows": 2}}
EVOLVED = {"blocks": 1, "score": "evolution", "generations": 3, "offspring": 2, "samples": 4}


@pytest.fixture
def recipe_of(tmp_path):
    folder, text = make_model(tmp_path / "model", num_hidden_layers=4), make_text(tmp_path / "text.txt")

    def made(*stages):
        return parse_recipe(
            {
                "model": str(folder),
                "stages": list(stages),
                "calibration": {"text": f"file:{text}", "samples": 6, "length": 64},
                "evaluation": {"text": f"file:{text}", "length": 64, "windows": 2},
            }
        )

    return made


def told(recipe, host, tmp_path, scratch="scratch"):
    seen = []
    compress(recipe, host, tmp_path / "a.safetensors", tmp_path / scratch, seen.append)
    return [update for update in seen if update.share is not None]


def test_stages_of_one_walk_are_one_part_and_work_on_the_whole_model_another(recipe_of):
    other = {**EORA, "params": {"rank": 4, "text": "file:/other.txt"}}
    stages = recipe_of({"method": "allocate.owl"}, {"method": "prune.wanda"}, other).stages
    found = [[number for number, _ in part] for part in parts_of(list(enumerate(stages, start=1)))]
    assert found == [[1], [2], [3]]
    stages = recipe_of(HALF, RTN, EORA).stages
    assert [len(part) for part in parts_of(list(enumerate(stages, start=1)))] == [3]


@pytest.mark.parametrize(
    "stages",
    [
        [RTN],
        [HALF, RTN, EORA],
        [SEARCH, RTN],
        [{"method": "allocate.fisher"}, RTN, EORA],
        [{"method": "allocate.dp"}, RTN],
        [{"method": "allocate.owl", "params": {"sparsity": 0.5}}, {"method": "prune.wanda"}],
        [{"method": "prune.blocks", "params": EVOLVED}, RTN],
        [{"method": "prune.width", "params": {"score": "taylor"}}, RTN],
    ],
    ids=lambda stages: stages[0]["method"],
)
def test_the_share_only_grows_and_ends_with_the_last_part(recipe_of, host, tmp_path, stages):
    recipe = recipe_of(*stages)
    shares = [update.share for update in told(recipe, host, tmp_path)]
    assert all(before <= after for before, after in itertools.pairwise(shares))
    assert shares[0] < 0.3
    assert shares[-1] == pytest.approx(1.0)
    # Nothing but the last part may look like it.
    layout = shrunk(facts(recipe.model, host), recipe.stages)
    seconds = [sum(part.values()) for part in seconds_of(recipe, layout)]
    before_last = sum(seconds[:-1]) / sum(seconds)
    assert before_last == 0 or before_last in shares


def test_a_search_moves_with_its_generations(recipe_of, host, tmp_path):
    seen = told(recipe_of(SEARCH, RTN), host, tmp_path)
    searched = [
        update.share for update in seen if update.stage == "allocate.evopress" and "KL" in update.detail
    ]
    assert len(set(searched)) == 4
    made = [update.share for update in seen if update.stage == "levels"]
    assert made[0] < made[-1] < searched[0] < searched[-1] < 1


def test_what_looks_at_all_linears_first_moves_on_with_its_own_work(recipe_of, host, tmp_path):
    learned = {"method": "prune.maskllm", "params": {"samples": 4, "epochs": 2}}
    seen = told(recipe_of(HALF, learned), host, tmp_path)
    looked = [update.share for update in seen if update.stage == "statistics"]
    worked = [update.share for update in seen if update.stage == "prune.maskllm" and update.done]
    assert looked[0] < looked[-1] <= worked[0]
    # Four blocks of two times three samples that are learned from.
    assert len(set(worked)) >= 4 * 2 * 3
    assert {update.stage for update in seen} <= {"compress", "statistics", "prune.maskllm", "embed", "save"}


def test_work_that_a_part_does_not_count_moves_nothing():
    seen = []
    headway = Headway(seen.append, [{"compress": 3.0}, {"levels": 1.0, "search": 4.0}])
    headway.begin(0)
    headway(Update("compress", 1, 3))
    headway(Update("outputs", 2, 3))
    headway.begin(1)
    headway(Update("compress", 3, 3))
    headway(Update("search", 1, 2))
    headway(Update("levels", 1, 2))
    assert [update.share for update in seen] == pytest.approx([1 / 8, 1 / 8, 3 / 8, 6 / 8, 6 / 8])
