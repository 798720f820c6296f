"""AWQ: never above rounding, exact folding, and better where a few channels matter."""

import pytest
import torch

from backend.artifacts import open_artifact, read_parts, tensor_sizes
from backend.estimate import estimate
from backend.methods.quantize.awq import _clipped, _grid, _nearest
from backend.parts import combined
from backend.solvers.folding import Feed
from tests.layers import correlated_inputs
from tests.methods.models import apart, asked, logits, made, outlying
from tests.tiny import DIFFERENT, make_model

AWQ = {"method": "quantize.awq", "params": {"bits": 3, "group_size": 16}}
RTN = {"method": "quantize.rtn", "params": {"bits": 3, "group_size": 16}}


def test_without_scales_and_clipping_it_is_plain_rounding(host, tmp_path):
    model = make_model(tmp_path / "model")
    bare = {"method": "quantize.awq", "params": {**AWQ["params"], "ratios": 1, "clipping": False}}
    ours, theirs = (read_parts(made(model, host, tmp_path, stage)[0]) for stage in (bare, RTN))
    assert ours.keys() == theirs.keys()
    for name, parts in ours.items():
        assert torch.equal(combined(parts), combined(theirs[name])), name


@pytest.mark.parametrize("family", DIFFERENT)
def test_at_eight_bits_the_folded_model_is_the_dense_one(host, tmp_path, family):
    model = make_model(tmp_path / "model", family)
    stage = {"method": "quantize.awq", "params": {"bits": 8, "group_size": 16, "clipping": False}}
    artifact, _ = made(model, host, tmp_path, stage)
    rtn, _ = made(model, host, tmp_path, RTN | {"params": {"bits": 8, "group_size": 16}})
    # Folding in the wrong place would be far off; what is left is the rounding to 8 bits.
    assert apart(model, artifact, host) < 3 * apart(model, rtn, host) + 1e-6


def test_where_few_channels_matter_it_loses_less_than_rounding_and_clipping_loses_less_again(host, tmp_path):
    model = outlying(tmp_path / "model", 12.0)
    lost = {}
    for name, stage in {
        "rtn": RTN,
        "scaled": {"method": "quantize.awq", "params": {**AWQ["params"], "clipping": False}},
        "awq": AWQ,
    }.items():
        artifact, _ = made(model, host, tmp_path, stage)
        lost[name] = apart(model, artifact, host)
    assert lost["scaled"] < 0.8 * lost["rtn"]
    assert lost["awq"] < lost["rtn"]


def test_clipping_never_raises_the_error_of_a_group_seen_through_its_inputs():
    x = correlated_inputs(400, 64).float()
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    weight[0, 5], weight[3, 40] = 9.0, -1e4
    grouped = weight.view(12, 4, 16)
    clipped = _clipped(grouped, x.T @ x, 3, symmetric=False)
    for row in range(12):
        for group in range(4):
            own = x[:, group * 16 : group * 16 + 16].double()
            plain, now = (
                (own @ (_nearest(one, 3, False)[row, group] - grouped[row, group]).double()).square().sum()
                for one in (grouped, clipped)
            )
            assert now <= plain * (1 + 1e-5)
    assert (clipped != grouped).any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_of_a_group_clipped_at_both_ends_the_low_one_has_a_step_more_whatever_the_scale(bits):
    reach = torch.linspace(0.01, 3.0, 500)[:, None, None]
    grouped = torch.randn(500, 1, 16, generator=torch.Generator().manual_seed(2)).mul(4).clamp(-reach, reach)
    grouped[..., 0], grouped[..., 1] = -reach[..., 0], reach[..., 0]
    scales, zeros = _grid(grouped, bits, symmetric=False)
    assert set(zeros.flatten().tolist()) == {float(2 ** (bits - 1))}
    rounded = (_nearest(grouped, bits, False) / scales.float()[..., None]).round()
    assert set(rounded.amin(dim=-1).flatten().tolist()) == {-float(2 ** (bits - 1))}
    assert set(rounded.amax(dim=-1).flatten().tolist()) == {float(2 ** (bits - 1) - 1)}
    # The scale is the exact one to float16's digits.
    torch.testing.assert_close(scales.float(), 2 * reach[..., 0] / (2**bits - 1), rtol=2e-3, atol=0)


def test_channels_that_come_from_one_row_share_their_scale():
    feed = Feed("v", norm=False, rows=4, width=2)
    seen = torch.arange(12.0)
    # Two heads of two channels, each repeated three times: 0 2 4 share a row, 1 3 5 the next.
    assert feed.tied(seen).tolist() == [2.0, 3.0, 8.0, 9.0]
    assert feed.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]), 12).tolist() == [
        1,
        2,
        1,
        2,
        1,
        2,
        3,
        4,
        3,
        4,
        3,
        4,
    ]


def test_a_stage_for_some_linears_leaves_the_function_of_the_others(host, tmp_path):
    model = make_model(tmp_path / "model")
    stage = {"method": "quantize.awq", "params": {"bits": 8, "group_size": 16}, "only": "*.mlp.*"}
    artifact, _ = made(model, host, tmp_path, stage)
    assert {name.split(".")[3] for name in read_parts(artifact)} == {"mlp"}
    assert apart(model, artifact, host) < 1e-3


def test_what_was_pruned_stays_so_and_bytes_are_as_estimated(host, tmp_path):
    model = make_model(tmp_path / "model")
    stages = ({"method": "prune.wanda", "params": {"sparsity": 0.5}}, AWQ)
    artifact, report = made(model, host, tmp_path, *stages)
    last = [row for row in report.layers if row["method"] == "quantize.awq"]
    assert {round(row["sparsity"], 2) for row in last} == {0.5}
    assert estimate(asked(model, tmp_path, *stages), host).packed_bytes == sum(
        tensor_sizes(artifact).values()
    )
    assert torch.isfinite(logits(artifact, host)).all()


def test_a_repaired_model_loses_less(host, tmp_path):
    model = outlying(tmp_path / "model", 12.0)
    eora = {"method": "compensate.eora", "params": {"rank": 8}}
    plain, repaired = (made(model, host, tmp_path, *stages)[0] for stages in ((AWQ,), (AWQ, eora)))
    assert apart(model, repaired, host) < apart(model, plain, host)
    assert open_artifact(repaired, host).model.config.tie_word_embeddings
