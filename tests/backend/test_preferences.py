"""Strengths from votes, against independent computations and votes drawn from known strengths."""

import math

import numpy as np
import pytest

from backend.preferences import Ballot, standings, strengths, wins


def plain(table, steps=20_000):
    """The same optimum by Hunter's minorisation, model by model, with the imaginary tie as a player of
    strength 1."""
    models = len(table)
    worth = [1.0] * models
    for _ in range(steps):
        for i in range(models):
            won = sum(table[i]) + 0.5
            met = sum((table[i][j] + table[j][i]) / (worth[i] + worth[j]) for j in range(models) if j != i)
            worth[i] = won / (met + 1 / (worth[i] + 1))
    return [math.log(value) for value in worth]


def votes(told, voter="one"):
    return [Ballot(voter, left, right, choice) for left, right, choice in told]


def test_ties_are_half_a_win_each_and_bad_pairs_are_left_out():
    table = wins(votes([(0, 1, "left"), (1, 0, "left"), (0, 1, "tie"), (0, 1, "same"), (0, 1, "bad")]), 2)
    assert table.tolist() == [[0, 2], [2, 0]]


@pytest.mark.parametrize(
    "table",
    [
        [[0, 3, 1], [2, 0, 4], [0.5, 1, 0]],
        [[0, 9, 9, 9], [0, 0, 2, 1], [0, 2, 0, 5], [0, 0, 1, 0]],
        [[0, 30], [0, 0]],
        [[0, 0, 3], [0, 0, 0], [1, 0, 0]],
    ],
)
def test_the_optimum_is_that_of_an_independent_iteration(table):
    assert strengths(np.array(table, dtype=float)) == pytest.approx(plain(table), abs=1e-6)


def test_a_model_that_lost_all_has_a_finite_strength():
    found = standings(votes([(0, 1, "left")] * 40), 2)
    assert -10 < found[1].strength < -2
    assert found[1].high < 0
    assert (found[1].won, found[1].lost, found[0].won) == (0, 40, 40)


def test_a_few_votes_that_agree_do_not_decide():
    found = standings(votes([(0, 1, "left")] * 3), 2)
    assert found[1].low < 0 < found[1].high


def test_without_votes_nothing_is_known():
    found = standings([], 3)
    assert [standing.strength for standing in found] == [0, 0, 0]
    assert found[0].low == found[0].high == 0, "the reference is what the others are compared with"
    assert found[1].low < -2
    assert found[1].high > 2


def test_sides_do_not_matter():
    one = standings(votes([(0, 1, "left"), (0, 1, "right"), (1, 2, "left")]), 3)
    other = standings(votes([(1, 0, "right"), (1, 0, "left"), (2, 1, "right")]), 3)
    assert [s.strength for s in one] == pytest.approx([s.strength for s in other])


def drawn(truth, voters, each, seed):
    """Votes of people who follow the model exactly."""
    generator = np.random.default_rng(seed)
    found = []
    for voter in range(voters):
        for _ in range(each):
            left, right = generator.choice(len(truth), 2, replace=False)
            first = generator.random() < 1 / (1 + math.exp(truth[right] - truth[left]))
            found.append(Ballot(str(voter), int(left), int(right), "left" if first else "right"))
    return found


def test_many_votes_find_the_strengths_they_were_drawn_from():
    truth = [0.0, -0.3, -1.5]
    found = standings(drawn(truth, 40, 100, 0), 3)
    for standing, strength in zip(found, truth, strict=True):
        assert standing.strength == pytest.approx(strength, abs=0.15)
    assert found[2].high < 0


@pytest.mark.parametrize(("voters", "each"), [(3, 30), (20, 12)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(voters, each):
    truth = [0.0, -0.7, -1.2]
    held = [
        standing.low <= truth[model] <= standing.high
        for seed in range(60)
        for model, standing in enumerate(standings(drawn(truth, voters, each, seed), 3, seed=seed))
        if model
    ]
    assert 0.9 <= np.mean(held) <= 1


def test_people_who_disagree_widen_the_interval():
    agreed = [ballot for n in range(10) for ballot in votes([(0, 1, "left"), (0, 1, "right")] * 20, str(n))]
    split = [
        ballot for n in range(10) for ballot in votes([(0, 1, "left" if n % 2 else "right")] * 40, str(n))
    ]
    calm, torn = standings(agreed, 2)[1], standings(split, 2)[1]
    assert calm.strength == pytest.approx(torn.strength, abs=1e-9)
    assert torn.high - torn.low > 3 * (calm.high - calm.low)
