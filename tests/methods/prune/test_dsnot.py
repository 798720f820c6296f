import pytest
import torch

from backend.methods.prune.dsnot import dsnot
from backend.methods.prune.wanda import wanda
from tests.layers import layer_of, random_layer


def shifted_layer(rows=32, inputs=96):
    """A layer whose inputs have means, as those of real models do."""
    layer, x = random_layer(rows, inputs)
    x = x + torch.linspace(-3, 3, inputs, dtype=torch.float64)
    return layer_of(layer.weight, x), x


def mean_error(layer, x, kept):
    """Each output's mean over the tokens of what pruning took away [out]."""
    return (layer.weight.double() * ~kept) @ x.mean(dim=0)


@pytest.mark.parametrize("params", [{"sparsity": 0.6}, {"sparsity": 0.5, "pattern": "2:4"}])
def test_each_output_loses_less_on_average_and_none_changes_sign(params):
    layer, x = shifted_layer()
    before = mean_error(layer, x, wanda(layer, **params)[0].kept())
    after = mean_error(layer, x, dsnot(layer, **params)[0].kept())
    assert bool((after.abs() <= before.abs() + 1e-9).all())
    assert bool((after.sign() == before.sign()).all())
    assert float(after.abs().mean()) < 0.7 * float(before.abs().mean())


def test_the_first_swap_is_the_one_worked_out_by_hand():
    layer, x = shifted_layer(rows=8)
    kept = wanda(layer, sparsity=0.5)[0].kept()
    swapped = dsnot(layer, sparsity=0.5, cycles=1, threshold=0.0)[0].kept()
    mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
    shift = layer.weight.double() * mean
    score = layer.weight.abs().double() * x.square().sum(dim=0).sqrt()
    for row in range(8):
        error = float(shift[row][~kept[row]].sum())
        sign = 1 if error > 0 else -1
        pruned = [j for j in range(96) if not kept[row, j]]
        grow = max(pruned, key=lambda j: sign * float(shift[row, j] / variance[j]))
        losers = [j for j in range(96) if kept[row, j] and sign * shift[row, j] < 0]
        go = min(losers, key=lambda j: float(score[row, j]))
        after = error + float(shift[row, go] - shift[row, grow])
        expected = kept[row].clone()
        if after * sign > 0:
            expected[grow], expected[go] = True, False
        assert torch.equal(swapped[row], expected)


def test_sparsity_of_each_row_and_each_group_stays():
    layer, _ = shifted_layer()
    free = dsnot(layer, sparsity=0.6, threshold=0.0)[0].kept()
    assert torch.equal(free.sum(dim=1), wanda(layer, sparsity=0.6)[0].kept().sum(dim=1))
    grouped = dsnot(layer, sparsity=0.5, pattern="2:4", threshold=0.0)[0].kept()
    assert not torch.equal(grouped, wanda(layer, pattern="2:4")[0].kept())
    assert bool((grouped.view(32, -1, 4).sum(dim=-1) == 2).all())


@pytest.mark.parametrize("params", [{"cycles": 0}, {"threshold": 1e9}])
def test_without_swaps_it_is_wanda(params):
    layer, _ = shifted_layer()
    assert torch.equal(dsnot(layer, sparsity=0.6, **params)[0].kept(), wanda(layer, sparsity=0.6)[0].kept())


def by_hand(layer, x, kept, threshold, sign_test, of=None):
    """The algorithm written out for each row with lists; `of` is M of a pattern whose least score goes."""
    mean, variance = x.mean(dim=0).tolist(), x.var(dim=0, correction=0).tolist()
    norms, kept = x.square().sum(dim=0).sqrt().tolist(), kept.clone()
    for row, weights in zip(kept, layer.weight.double().tolist(), strict=True):
        shift = [2048 * w * mu for w, mu in zip(weights, mean, strict=True)]
        score = [abs(w) * norm for w, norm in zip(weights, norms, strict=True)]
        pruned = [j for j in range(len(weights)) if not row[j]]
        alive = [j for j in range(len(weights)) if row[j]]
        error = sum(shift[j] for j in pruned)
        first = error > 0
        for _ in range(50):
            way = 1 if error > 0 else -1
            if abs(error) <= threshold:
                break
            grow = max(pruned, key=lambda j: way * shift[j] / variance[j])
            goers = [j for j in alive if (j // of == grow // of if of else way * shift[j] < 0)]
            if way * shift[grow] <= 0 or not goers:
                break
            go = min(goers, key=lambda j: score[j])
            after = error + shift[go] - shift[grow]
            if sign_test and (after > 0) != first:
                break
            error = after
            row[grow], row[go] = True, False
            pruned.remove(grow)
            alive.remove(go)
    return kept


@pytest.mark.parametrize("sign_test", [True, False])
@pytest.mark.parametrize("threshold", [0.1, 50.0])
def test_swaps_with_and_without_the_sign_test_are_those_written_out_by_hand(sign_test, threshold):
    layer, x = shifted_layer()
    start = wanda(layer, sparsity=0.6)[0].kept()
    ours = dsnot(layer, sparsity=0.6, threshold=threshold, sign_test=sign_test)[0].kept()
    assert torch.equal(ours, by_hand(layer, x, start, threshold, sign_test))
    assert not torch.equal(ours, start)


def test_by_score_the_least_of_the_group_goes_whatever_its_sign():
    layer, x = shifted_layer()
    start = wanda(layer, pattern="2:4")[0].kept()
    by_score = dsnot(layer, pattern="2:4", group_rule="score")[0].kept()
    assert torch.equal(by_score, by_hand(layer, x, start, 0.1, sign_test=True, of=4))
    by_sign = dsnot(layer, pattern="2:4")[0].kept()
    assert not torch.equal(by_score, by_sign)
    assert bool((by_score.view(32, -1, 4).sum(dim=-1) == 2).all())


def test_the_threshold_is_an_error_summed_over_2048_tokens_however_many_there_were():
    layer, x = shifted_layer(rows=4)
    start = wanda(layer, sparsity=0.6)[0].kept()
    largest = 2048 * float(mean_error(layer, x, start).abs().max())
    for tokens in (layer, layer_of(layer.weight, torch.cat([x, x, x]))):
        above = dsnot(tokens, sparsity=0.6, threshold=largest * 1.001, sign_test=False)[0].kept()
        below = dsnot(tokens, sparsity=0.6, threshold=largest * 0.999, sign_test=False)[0].kept()
        assert torch.equal(above, start)
        assert not torch.equal(below, start)
