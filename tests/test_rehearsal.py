"""The rehearsal itself: it refuses and counts what a GPU would refuse and wait for, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors

from tests.rehearsal import OnDevice, rehearsal


def test_values_are_those_of_the_cpu_and_say_that_they_live_on_the_device():
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with rehearsal():
        there = values.to("cuda")
        made = (there @ there.T).softmax(dim=1)
        assert (made.device, made.is_cuda, made.is_cpu, made.is_meta) == (
            torch.device("cuda:0"),
            True,
            False,
            False,
        )
        assert torch.equal(made.cpu(), (values @ values.T).softmax(dim=1))
        assert made.cpu().device == torch.device("cpu")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="cuda"),
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
        lambda: torch.as_tensor([1.0, 2.0], device=torch.device("cuda", 0)),
        lambda: torch.arange(3, device="cuda"),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)),
        lambda: torch.ones(3).cuda(),
        lambda: torch.ones(3).to(torch.zeros(2, device="cuda")),
        lambda: torch.zeros(2, device="cuda").new_zeros(3),
        lambda: torch.zeros_like(torch.zeros(2, device="cuda")),
        lambda: torch.empty(2, device=torch.zeros(2, device="cuda").device),
        lambda: torch.zeros(2, 2, device="cuda").unbind()[0],
    ],
)  # fmt: skip
def test_what_is_made_for_the_device_is_there(make):
    with rehearsal():
        assert make().device == torch.device("cuda:0")
        assert isinstance(make(), OnDevice)


def test_what_is_made_for_nothing_stays_on_the_cpu():
    with rehearsal():
        assert torch.tensor([1.0]).device == torch.zeros(2).device == torch.device("cpu")
        assert torch.zeros(2).to("meta").is_meta
        with torch.device("meta"):
            assert nn.Linear(2, 2).weight.is_meta


def test_a_context_of_a_device_means_the_real_functions_again_afterwards():
    _device_constructors.cache_clear()
    with rehearsal(), torch.device("meta"):
        assert torch.zeros(1).is_meta
        assert torch.tensor([1.0]).is_meta
    with torch.device("meta"):
        assert torch.tensor([1.0]).is_meta
        assert torch.as_tensor([1.0]).is_meta


@pytest.mark.parametrize("act", [lambda a: a.unsqueeze_(0), lambda a: a.t_(), lambda a: a.squeeze_()])
def test_a_change_of_shape_in_place_is_refused_and_never_half_done(act):
    with rehearsal(), pytest.raises(RuntimeError, match="cannot change its shape in place"):
        act(torch.ones(1, 4, device="cuda"))


def _refused(act):
    with rehearsal(), pytest.raises(RuntimeError, match="same device"):
        act(torch.ones(4, 4, device="cuda"), torch.ones(4, 4))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "act",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.stack([there[0, 0], here[0, 0]]),
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: torch.where(here > 0, there, there),
        lambda there, here: here.add_(there),
        lambda there, here: here * there[0, 0],
        lambda there, here: here[0, 0].clone().add_(there[0, 0]),
        lambda there, here: here[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda there, here: there.index_select(0, torch.zeros(1, dtype=torch.long)),
        lambda there, here: there.gather(1, torch.zeros(4, 1, dtype=torch.long)),
        lambda there, here: there.__setitem__(torch.tensor([0, 1]), here[:2]),
        lambda there, here: here.__setitem__(torch.tensor([0, 1]), there[:2]),
        lambda there, here: nn.functional.embedding(torch.tensor([0]), there),
        lambda there, here: nn.functional.linear(there, here),
        lambda there, here: there @ here[0, 0].expand(4, 4),
        lambda there, here: torch.searchsorted(there[0], here[0]),
        lambda there, here: torch.addmm(there, there, here),
        lambda there, here: there.scatter_(1, torch.zeros(4, 1, dtype=torch.long), 1.0),
        lambda there, here: torch.add(there, there, out=here),
        lambda there, here: nn.functional.scaled_dot_product_attention(there[None], there[None], here[None]),
    ],
)  # fmt: skip
def test_tensors_of_two_devices_do_not_meet(act, inference):
    with torch.inference_mode(inference):
        _refused(act)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "act",
    [
        lambda there, here: there * here[0, 0],
        lambda there, here: here[0, 0] * there,
        lambda there, here: torch.where(there > 2, there, here[0, 0]),
        lambda there, here: torch.where(there > 2, 1.0, there),
        lambda there, here: there.masked_fill(there > 2, here[0, 0]),
        lambda there, here: there[torch.tensor([1, 2])],
        lambda there, here: there.clone().copy_(here),
        lambda there, here: there.clamp(min=here[0, 0]),
        lambda there, here: nn.functional.scaled_dot_product_attention(*[there[None]] * 3)[0],
        lambda there, here: nn.functional.scaled_dot_product_attention(*[there[None]] * 3, is_causal=True)[0],
    ],
)  # fmt: skip
def test_what_cuda_allows_is_allowed_and_right(act, inference):
    here = torch.arange(16.0).view(4, 4)
    expected = act(here.clone(), here)
    with torch.inference_mode(inference), rehearsal() as device:
        found = act(here.to("cuda"), here)
        assert found.device == torch.device("cuda:0")
        assert device.synchronisations == 0
        torch.testing.assert_close(found.cpu(), expected)


def test_items_can_be_set_by_numbers_and_by_values_of_the_device():
    with rehearsal():
        there = torch.zeros(3, 2, device="cuda")
        there[0] = 1.0
        there[torch.tensor([1])] = 2.0
        there[2, :] = torch.tensor([3.0, 4.0], device="cuda")
        there[there == 4.0] = 5.0
        assert there.tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 5.0]]


def test_random_numbers_take_a_generator_of_their_own_device():
    with rehearsal():
        on_cpu, on_device = torch.Generator().manual_seed(0), torch.Generator(device="cuda").manual_seed(0)
        for device, generator in (("cuda", on_cpu), ("cpu", on_device)):
            with pytest.raises(RuntimeError, match="device type for generator"):
                torch.randn(3, device=device, generator=generator)
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.multinomial(torch.ones(3, device="cuda"), 1, generator=on_cpu)
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.randperm(3, generator=on_device)
        torch.randn(3, generator=on_cpu)
        torch.empty(3, device="cuda").uniform_(generator=on_device)


def test_tensors_of_the_device_do_not_become_numpy():
    with rehearsal():
        there = torch.ones(2, device="cuda")
        for act in (there.numpy, lambda: np.asarray(there), lambda: np.add(there, 1)):
            with pytest.raises(TypeError, match="numpy"):
                act()
        assert there.cpu().numpy().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("act", "count"),
    [
        (lambda x: x[0].item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: int(x.sum()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu"), 1),
        (lambda x: torch.zeros(3).copy_(x), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.__setitem__(x > 1, x[:1].expand(1)), 0),
        (lambda x: x.__setitem__(x > 0, torch.ones(2, device="cuda")), 1),
        (lambda x: x.__setitem__(x > 1, 0.0), 0),
        (lambda x: x.masked_select(x > 1), 1),
        (lambda x: torch.equal(x, x + 1), 1),
        (lambda x: x.unique(), 1),
        (lambda x: x.repeat_interleave(x.long()), 1),
        (lambda x: x.repeat_interleave(2), 0),
        (lambda x: x.long().bincount(), 1),
        (lambda x: torch.allclose(x, x), 1),
        (lambda x: torch.linalg.cholesky(x.diag() + torch.eye(3, device="cuda")), 1),
        (lambda x: torch.linalg.eigh(x.diag()), 1),
        (lambda x: [one for one in x], 0),
        (lambda x: (x @ x, x.sum(), x.topk(2), x.argsort(), x.cumsum(0), x[1:], x[x.argmax()[None]]), 0),
        (lambda x: x.masked_fill(x > 1, 0.0), 0),
        (lambda x: torch.where(x > 1, x, 0.0), 0),
        (lambda x: torch.linalg.cholesky_ex(x.diag()), 0),
        (lambda x: torch.tensor([1.0], device="cuda"), 0),
        (lambda x: (x.to("cuda"), x.to(x.device), x.double(), x.new_zeros(2)), 0),
    ],
)  # fmt: skip
def test_each_wait_for_the_device_is_counted(act, count, inference):
    with torch.inference_mode(inference), rehearsal() as device:
        x = torch.arange(3.0, device="cuda")
        act(x)
        assert device.synchronisations == count
        assert all("tests/test_rehearsal.py:" in where for where in device.waits)


@pytest.mark.parametrize("inference", [False, True])
def test_products_that_are_left_to_the_cpu_are_counted(inference):
    here = torch.ones(2, 2)
    with torch.inference_mode(inference), rehearsal() as device:
        there = here.to("cuda")
        nn.functional.linear(there @ there, there)
        assert not device.products
        here @ here
        nn.functional.linear(here, here)
        assert device.products.total() == 2
        assert all("tests/test_rehearsal.py:" in where for where in device.products)


def test_to_its_own_device_is_no_copy():
    with rehearsal():
        x = torch.ones(2, device="cuda")
        assert x.to("cuda") is x.to(x.device) is x.to(torch.float32) is x.cuda() is x
        assert x.to(torch.float64).device == x.device
        assert x.to(x.device, copy=True) is not x


def test_gradients_are_those_of_the_cpu_and_live_on_the_device():
    def grown(weight: Tensor, x: Tensor) -> Tensor:
        hidden = nn.functional.scaled_dot_product_attention(x, x @ weight, x.to(torch.float64).float())
        return torch.where(hidden > 0, hidden, 0.5).square().mean() * torch.tensor(3.0)

    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(2, 4, 4, generator=generator) for _ in range(2))
    plain = weight.clone().requires_grad_()
    grown(plain, x).backward()
    with rehearsal():
        there = weight.to("cuda").requires_grad_()
        grown(there, x.to("cuda")).backward()
        assert there.grad is not None
        assert there.grad.device == torch.device("cuda:0")
        torch.testing.assert_close(there.grad.cpu(), plain.grad)
        moved = weight.clone().requires_grad_()
        grown(moved.to("cuda"), x.to("cuda")).backward()
        torch.testing.assert_close(moved.grad, plain.grad)


def test_a_module_that_is_moved_keeps_what_its_parts_share():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    with rehearsal():
        both = nn.Sequential(first, second).to("cuda")
        assert both[0].weight is both[1].weight
        assert isinstance(both[0].weight, nn.Parameter)
        assert both[0].weight.device == torch.device("cuda:0")
        assert both(torch.ones(1, 3, device="cuda")).device == torch.device("cuda:0")
        with pytest.raises(RuntimeError, match="same device"):
            both(torch.ones(1, 3))
        again = copy.deepcopy(both)
        assert again[0].weight is again[1].weight
        assert again[0].weight.data_ptr() != both[0].weight.data_ptr()


def test_outside_of_the_rehearsal_its_tensors_are_refused_and_everything_is_as_before():
    real = torch.tensor, torch.Generator, torch.cuda.is_available
    with rehearsal():
        there = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="outside"):
        there + 1
    assert real == (torch.tensor, torch.Generator, torch.cuda.is_available)
    assert "to" not in Tensor.__dict__
