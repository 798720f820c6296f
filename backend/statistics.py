"""Second moments of the inputs of linears, gathered by hooks while blocks run."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from backend.registry import Need
from backend.views import Statistics, most

# Columns of the Gram matrix computed at a time: only strips on and above the diagonal are multiplied out.
_STRIP = 256
# Which moments a file of statistics holds; another number makes old files of the cache unread.
_MOMENTS = 3
# Rows of a sample of the inputs.
_SAMPLE = 512
_PER_CHANNEL = ("squares", "sums", "magnitudes", "absolutes", "largest")


class Gatherer:
    """While open, adds what flows into the first linear of each group to the statistics of the group."""

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]], needs: Mapping[str, Need]) -> None:
        """`needs` says what each linear's stages ask for; a group gathers the most one of it needs."""
        self._model = model
        self._sums: dict[str, _Sums] = {}
        self._handles: list[RemovableHandle] = []
        self._last: str | None = None
        for group in groups:
            need = most(needs.get(name, "nothing") for name in group)
            if need != "nothing":
                self._sums[group[0]] = _Sums(need)
                self._last = group[0]

    def __enter__(self) -> Self:
        for name, sums in self._sums.items():
            module = self._model.get_submodule(name)
            self._handles.append(module.register_forward_pre_hook(self._hook(sums, name == self._last)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def feed(self, run: Callable[[], Any]) -> None:
        """Run a block; it is left as soon as the last wanted input was seen."""
        with suppress(_SeenAll):
            run()

    def of(self, group: Sequence[str]) -> Statistics:
        """The statistics of a group; empty ones when none of its linears asked."""
        sums = self._sums.get(group[0])
        return sums.finish() if sums else Statistics()

    @property
    def wanted(self) -> bool:
        """Whether any linear asked for anything."""
        return bool(self._sums)

    def _hook(self, sums: "_Sums", last: bool) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            sums.add(inputs[0])
            if last:
                raise _SeenAll

        return add


class _SeenAll(Exception):
    pass


class _Sums:
    def __init__(self, need: Need) -> None:
        self.need = need
        self.tokens = 0
        self.squares: Tensor | None = None
        self.sums: Tensor | None = None
        self.magnitudes: Tensor | None = None
        self.absolutes: Tensor | None = None
        self.largest: Tensor | None = None
        self.gram: Tensor | None = None
        self.sample: Tensor | None = None
        self._chances = torch.empty(0)
        self._rng = torch.Generator().manual_seed(0)

    def add(self, x: Tensor) -> None:
        """Inputs [samples, length, in], or of one sample [length, in]."""
        x = x.detach().float()
        inputs = x.shape[-1]
        samples = x.reshape(-1, x.shape[-2], inputs)
        x = x.reshape(-1, inputs)
        self.tokens += x.shape[0]
        if self.need == "inputs":
            self._draw(x)
        # Float32 within a batch: sums in float64 from the start take ten times as long.
        sums = x.sum(dim=0).double()
        sizes = samples.abs()
        means, largest = sizes.mean(dim=1).double(), sizes.amax(dim=(0, 1)).double()
        absolutes, magnitudes = means.sum(dim=0) * samples.shape[1], means.amax(dim=0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.absolutes = absolutes if self.absolutes is None else self.absolutes + absolutes
        self.magnitudes = (
            magnitudes if self.magnitudes is None else torch.maximum(self.magnitudes, magnitudes)
        )
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if self.need == "norms":
            squares = x.square().sum(dim=0).double()
            self.squares = squares if self.squares is None else self.squares + squares
            return
        if self.gram is None:
            self.gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=x.device)
        for start in range(0, inputs, _STRIP):
            stop = min(start + _STRIP, inputs)
            # Float32 products of one batch, float64 sums over batches.
            self.gram[start:stop, start:] += x[:, start:stop].T @ x[:, start:]

    def _draw(self, x: Tensor) -> None:
        """Keep the tokens with the largest of random numbers, so that each has the same chance."""
        chances = torch.cat([self._chances, torch.rand(len(x), generator=self._rng)])
        x = x if self.sample is None else torch.cat([self.sample, x])
        kept = chances.topk(min(_SAMPLE, len(chances))).indices
        self._chances, self.sample = chances[kept], x[kept.to(x.device)]

    def finish(self) -> Statistics:
        gram, squares = self.gram, self.squares
        if gram is not None:
            _mirror(gram)
            squares = gram.diagonal().clone()
        return Statistics(
            self.tokens, squares, gram, self.sums, self.magnitudes, self.absolutes, self.largest, self.sample
        )


# Within it, what was gathered in inference mode may be written to, and anything else as well.
@torch.inference_mode()
def _mirror(gram: Tensor) -> None:
    """Fill what lies below the diagonal from what lies above it, without a second matrix."""
    for start in range(0, len(gram), _STRIP):
        stop = min(start + _STRIP, len(gram))
        inside = gram[start:stop, start:stop]
        inside.copy_(inside.triu() + inside.triu(1).T)
        gram[stop:, start:stop] = gram[start:stop, stop:].T


def statistics_file(
    cache: Path, block: int, model: Sequence[str], tokens: Tensor, asked: Sequence[Need]
) -> Path:
    """Where the statistics of a block lie that its linears `asked` for, of token ids [samples, length].

    `model` tells which model it is and what was done to it.
    """
    ids = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    text = json.dumps([_MOMENTS, list(model), ids, list(asked)])
    folder = cache / "statistics" / hashlib.sha256(text.encode()).hexdigest()[:16]
    return folder / f"block-{block:03d}.safetensors"


def write_statistics(path: Path, found: Mapping[str, Statistics]) -> None:
    """Keep the statistics of a block's groups; Gram matrices as their upper triangles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, statistics in found.items():
        tensors[f"{name}#tokens"] = torch.tensor([statistics.tokens])
        for kind in _PER_CHANNEL:
            if (values := getattr(statistics, kind)) is not None:
                tensors[f"{name}#{kind}"] = values.cpu()
        if statistics.sample is not None:
            tensors[f"{name}#sample"] = statistics.sample.cpu()
        if statistics.gram is not None:
            gram = statistics.gram
            tensors[f"{name}#gram"] = torch.cat([row[place:] for place, row in enumerate(gram)]).cpu()
    temporary = path.with_suffix(".writing")
    save_file(tensors, temporary)
    temporary.replace(path)


def read_statistics(
    path: Path, groups: Sequence[Sequence[str]], device: torch.device
) -> dict[str, Statistics]:
    """What `write_statistics` kept, by the first name of each group."""
    found = {}
    with safe_open(path, "pt", device=str(device)) as opened:
        names = set(opened.keys())
        for group in groups:
            name = group[0]
            kept = {
                kind: opened.get_tensor(key)
                for kind in (*_PER_CHANNEL, "sample")
                if (key := f"{name}#{kind}") in names
            }
            gram = None
            if f"{name}#gram" in names:
                inputs = len(kept["squares"])
                gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
                rows = opened.get_tensor(f"{name}#gram").split(list(range(inputs, 0, -1)))
                for place, row in enumerate(rows):
                    gram[place, place:] = row
                _mirror(gram)
            found[name] = Statistics(int(opened.get_tensor(f"{name}#tokens")), gram=gram, **kept)
    return found
