import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.parts import rebuild
from backend.planes import Planes, blocked, nearest, patterns, powers_of, stored_coefficients, unblocked
from backend.positions import mask_bytes


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(shape=(7, 20), block=(3, 8), planes=2, signed=False, offset=True, terms=0, kept=None):
    blocks = -(-shape[0] // block[0]) * -(-shape[1] // block[1])
    coefficients = random(blocks, planes + offset, seed=1)
    return Planes.encode(random(*shape), coefficients, block, signed, offset, kept, terms)


def by_hand(part):
    """The formula weight by weight, from the planes and the coefficients."""
    scales, across = part.coefficients(), -(-part.shape[1] // part.wide)
    planes = [part.bits_of(k) for k in range(len(part.planes))]
    out, kept = torch.zeros(part.shape), part.kept()
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            own = scales[i // part.tall * across + j // part.wide]
            bits = [float(plane[i, j]) for plane in planes]
            value = sum(
                float(s) * (2 * b - 1 if part.signed else b) for s, b in zip(own, bits, strict=False)
            ) + (float(own[-1]) if part.offset else 0.0)
            out[i, j] = value if kept is None or kept[i, j] else 0.0
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("terms", [0, 3])
@pytest.mark.parametrize(("signed", "offset"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("block", [(1, 20), (7, 1), (3, 8), (1, 4)])
def test_decodes_to_the_sum_of_scaled_planes(block, signed, offset, terms, masked):
    kept = random(7, 20, seed=2) > 0 if masked else None
    part = made(block=block, signed=signed, offset=offset, terms=terms, kept=kept)
    assert torch.allclose(part.dense(), by_hand(part), atol=1e-6)


@pytest.mark.parametrize(("signed", "offset"), [(False, True), (True, False)])
def test_each_weight_gets_the_nearest_of_its_blocks_levels(signed, offset):
    part = made(signed=signed, offset=offset, planes=3)
    levels = part.coefficients() @ patterns(3, signed, offset, torch.device("cpu")).T
    values, dense = blocked(random(7, 20), (3, 8)), blocked(part.dense(), (3, 8))
    inside = blocked(torch.ones(7, 20), (3, 8)).bool()
    best = (values[..., None] - levels[:, None, :]).abs().amin(dim=-1)
    assert torch.allclose((values - dense).abs()[inside], best[inside], atol=1e-6)


def test_a_product_with_inputs_is_a_sum_over_the_planes():
    part = made(shape=(6, 32), block=(1, 16))
    x, scales = random(32, seed=5), part.coefficients().view(6, 2, 3)
    y = torch.zeros(6)
    for group in range(2):
        mine = x[group * 16 : group * 16 + 16]
        y += scales[:, group, 2] * mine.sum()
        for k in range(2):
            y += scales[:, group, k] * (part.bits_of(k)[:, group * 16 : group * 16 + 16].float() @ mine)
    assert torch.allclose(y, part.dense() @ x, atol=1e-4)


@pytest.mark.parametrize("block", [(1, 5), (4, 4), (9, 3), (2, 20)])
def test_blocks_are_put_back_where_they_were(block):
    values = random(7, 20)
    assert torch.equal(unblocked(blocked(values, block), (7, 20), block), values)


def test_codes_are_the_nearest_level_by_brute_force_with_levels_in_any_order():
    values, table = random(5, 200), random(5, 8, seed=3)
    chosen = table.gather(1, nearest(values, table))
    assert torch.equal((values - chosen).abs(), (values[..., None] - table[:, None]).abs().amin(dim=-1))


def test_bits_are_those_of_planes_coefficients_and_mask():
    assert made(shape=(8, 32), block=(1, 16)).bits == 2 * 256 + 16 * 3 * 16
    kept = torch.zeros(8, 32, dtype=torch.bool)
    kept[:, ::2] = True
    assert made(shape=(8, 32), block=(1, 16), kept=kept).bits == (
        2 * 128 + 16 * 3 * 16 + 8 * mask_bytes(256, 128, "2:4")
    )
    assert made(shape=(8, 32), block=(8, 1), signed=True, offset=False, terms=3).bits == 512 + 32 * 2 * 18


def test_sums_of_three_signed_powers_of_two_are_stored_exactly():
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-12, 4, (500, 3), generator=generator).double()
    signs = torch.randint(0, 2, (500, 3), generator=generator) * 2 - 1
    values = (signs * exponents.exp2()).sum(dim=1).float()
    part = Planes.encode(torch.zeros(500, 4), values[:, None], (1, 4), True, False, None, 3)
    assert torch.equal(part.coefficients()[:, 0], values)


def test_powers_far_below_the_largest_are_dropped_and_zero_is_zero():
    values = torch.tensor([[2.0**20], [2.0**-10], [2.0**-11], [0.0]])
    part = Planes.encode(torch.ones(4, 2), values, (1, 2), True, False, None, 1)
    assert part.coefficients()[:, 0].tolist() == [2.0**20, 2.0**-10, 0.0, 0.0]
    assert powers_of(torch.zeros(3, 2), 2)[1] == 0


def test_coefficients_take_float32_only_where_a_whole_block_is_too_small_or_too_large():
    assert stored_coefficients(torch.tensor([[1.0, 1e-9], [0.0, 0.0]])).dtype == torch.float16
    assert stored_coefficients(torch.tensor([[1.0, 1.0], [1e-6, 0.0]])).dtype == torch.float32
    assert stored_coefficients(torch.tensor([[1e5, 1.0]])).dtype == torch.float32


def test_a_process_that_never_saw_a_method_opens_it(tmp_path):
    part = made(kept=random(7, 20, seed=2) > 0, terms=3)
    save_file(part.tensors(), tmp_path / "part.safetensors")
    save_file({"dense": part.dense()}, tmp_path / "dense.safetensors")
    (tmp_path / "settings.json").write_text(json.dumps(part.settings()))
    lines = (
        "import json, sys; from pathlib import Path; import torch",
        "from safetensors.torch import load_file",
        "from backend.parts import rebuild\n"
        "at = Path(sys.argv[1]); settings = json.loads((at / 'settings.json').read_text())",
        "part = rebuild('planes', settings, load_file(at / 'part.safetensors'))",
        "assert torch.equal(part.dense(), load_file(at / 'dense.safetensors')['dense'])",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)], check=True)
    assert rebuild("planes", part.settings(), load_file(tmp_path / "part.safetensors")).bits == part.bits
