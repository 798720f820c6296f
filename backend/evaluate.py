"""Score an artifact's windows token by token, against the text and against the dense model.

Logits of a whole window never exist at once: the head and the losses run over chunks of rows. The dense model
runs once per model and protocol; its final hidden states are kept, and its logits made again chunk by chunk.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.artifacts import OpenModel, is_whole, load_model, load_tokenizer, open_artifact
from backend.errors import UserError
from backend.facts import facts
from backend.host import Host
from backend.precision import name_of, widen_in_calls
from backend.progress import Progress, Update
from backend.proof import first_overflow, overflow
from backend.readout import SLICE, Readout
from backend.recipe import Recipe
from backend.registry import discover
from backend.text import Tokens, evaluation

# Tokens that two models with the same weights read, to see whether they compute the same.
_FEW_TOKENS = 64


@dataclass(frozen=True)
class Measured:
    """One number with its meaning; `protocol` says under which conditions it may be compared."""

    metric: str
    value: float
    unit: str
    lower_is_better: bool
    protocol: dict[str, Any]
    text: str = ""
    stderr: float | None = None
    n: int = 1


@dataclass(frozen=True)
class Series:
    """Values per window, kept so that two runs can be compared pairwise."""

    name: str
    protocol: dict[str, Any]
    values: tuple[float, ...]


@dataclass
class Result:
    """What one metric found; `broken` is the cause when the artifact is no working model."""

    measurements: list[Measured] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    broken: str | None = None


@dataclass(frozen=True)
class Scores:
    """Per scored token, [windows, length - 1] float32: losses in nats and divergences from the dense model.

    nll         -ln Q(token)             dense_nll   -ln P(token)
    kl          KL(P || Q)               kl_reverse  KL(Q || P)
    agree       1 where both rank the same token first
    correct     1 where Q ranks the true token first     dense_correct  the same for P
    """

    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def windows(self, name: str) -> Tensor:
        """Mean of each window [windows] float64."""
        return self.values[name].double().mean(dim=1)


class Subject:
    """An artifact under measurement, with the texts, caches and settings that metrics need."""

    def __init__(self, recipe: Recipe, host: Host, artifact: Path, scratch: Path, progress: Progress) -> None:
        self.recipe, self.host, self.artifact, self.scratch, self.progress = (
            recipe, host, artifact, scratch, progress,
        )  # fmt: skip

    @cached_property
    def opened(self) -> OpenModel:
        """The model that the artifact decodes to."""
        return open_artifact(self.artifact, self.host)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the recipe's model."""
        return load_tokenizer(self.recipe.model, self.host)

    @cached_property
    def tokens(self) -> Tokens:
        """Evaluation windows."""
        wanted = self.recipe.evaluation
        return evaluation(wanted.text, self.tokenizer, wanted.length, wanted.windows, self.host)

    @property
    def protocol(self) -> dict[str, Any]:
        """The stamp of everything that is measured on the windows."""
        stored, computed = name_of(self.opened.model.dtype), name_of(self.opened.compute_dtype)
        return {
            **self.tokens.protocol, "model_dtype": stored, "compute_dtype": computed,
            "device": self.opened.device.type,
        }  # fmt: skip

    @property
    def reference_protocol(self) -> dict[str, Any]:
        """The stamp of what is measured against the dense model: it names that model's weights."""
        layout = facts(self.recipe.model, self.host)
        return {**self.protocol, "reference": layout.fingerprint[:16]}

    @cached_property
    def scores(self) -> Scores:
        """Scores of all windows; those in `scratch` are taken up, so that an interrupted pass goes on."""
        divergence = "divergence" in self.recipe.evaluation.metrics
        stamp = hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:12]
        self.scratch.mkdir(parents=True, exist_ok=True)
        windows = self.tokens.ids
        found: list[dict[str, Tensor]] = []
        dense = self._dense_states() if divergence else None
        tokens = 0
        for number, ids in enumerate(windows):
            detail = f"window {number + 1} of {len(windows)}"
            self.progress(Update("evaluate", number, len(windows), detail, tokens))
            file = self.scratch / f"scores-{stamp}-{number:04d}.safetensors"
            states = next(dense) if dense else None
            if is_whole(file) and (not divergence or "kl" in (kept := load_file(file))):
                found.append(load_file(file) if not divergence else kept)
                continue
            scored = self._score(ids, states)
            save_file(scored, file.with_suffix(".writing"))
            file.with_suffix(".writing").replace(file)
            found.append(scored)
            tokens += len(ids)
        self.progress(Update("evaluate", len(windows), len(windows), tokens=tokens))
        return Scores({name: torch.stack([window[name] for window in found]) for name in found[0]})

    @torch.inference_mode()
    def _score(self, ids: Tensor, dense: Tensor | None) -> dict[str, Tensor]:
        ids = ids.to(self.opened.device)
        if dense is None:
            states = final_states(self.opened, ids)
            if not self.recipe.stages:
                self._check_finite(self.opened, ids, states)
            return {"nll": token_losses(self.opened, states[:-1], ids[1:]).cpu()}
        dense = dense.to(ids.device)
        states = dense if self._is_dense else final_states(self.opened, ids)
        ours = self.opened.readout.slices(states[:-1])
        targets = ids[1:].split(SLICE)
        if self._is_dense:
            rows = [compare_logits(mine, mine, wanted) for mine, wanted in zip(ours, targets, strict=True)]
        else:
            theirs = self._dense_head.slices(dense[:-1])
            rows = [
                compare_logits(mine, their, wanted)
                for mine, their, wanted in zip(ours, theirs, targets, strict=True)
            ]
        return {name: torch.cat([row[name] for row in rows]).float().cpu() for name in rows[0]}

    def _check_finite(self, dense: OpenModel, ids: Tensor, states: Tensor) -> None:
        """UserError with the block where the states of the dense model are no numbers."""
        if not bool(torch.isfinite(dense.readout(states[-1:])).all() and torch.isfinite(states).all()):
            head = f"the head in {name_of(dense.compute_dtype)}"
            raise overflow(self.recipe.model, first_overflow(dense, ids) or head)

    @cached_property
    def _is_dense(self) -> bool:
        """Whether the artifact is the dense model to the last bit: then one pass over the text is enough.

        Same tensors under another configuration are another model, so both also read a few tokens.
        """
        if self.recipe.stages:
            return False
        dense = self._dense_model
        mine, its = self.opened.model.state_dict(), dense.model.state_dict()
        if mine.keys() != its.keys() or not all(torch.equal(mine[name], its[name]) for name in mine):
            return False
        few = self.tokens.ids[0, :_FEW_TOKENS].to(dense.device)
        with torch.inference_mode():
            return torch.equal(final_states(self.opened, few), final_states(dense, few))

    @cached_property
    def _dense_folder(self) -> Path:
        layout = facts(self.recipe.model, self.host)
        stamp = json.dumps([layout.fingerprint, self.protocol], sort_keys=True)
        return self.host.cache / "hidden" / hashlib.sha256(stamp.encode()).hexdigest()[:16]

    @cached_property
    def _dense_model(self) -> OpenModel:
        return load_model(facts(self.recipe.model, self.host), self.host)

    @cached_property
    def _dense_head(self) -> Readout:
        """The dense model's head alone, without the rest of that model."""
        file = self._dense_folder / "head.safetensors"
        if not is_whole(file):
            head = self._dense_model.head
            save_file({name: tensor.cpu().clone() for name, tensor in head.state_dict().items()}, file)
        tensors = load_file(file, device=str(self.opened.device))
        head = nn.Linear(
            tensors["weight"].shape[1], tensors["weight"].shape[0], bias="bias" in tensors, device="meta"
        )
        head.load_state_dict(tensors, assign=True)
        if self.opened.compute_dtype != head.weight.dtype:
            widen_in_calls(head, self.opened.compute_dtype)
        return Readout(head, self.opened.readout.bounds)

    def _dense_states(self) -> Iterator[Tensor]:
        """Final hidden states [length, d] of the dense model, window by window, kept on disk."""
        folder = self._dense_folder
        folder.mkdir(parents=True, exist_ok=True)
        windows = self.tokens.ids
        files = [folder / f"window-{number:04d}.safetensors" for number in range(len(windows))]
        missing = [number for number, file in enumerate(files) if not is_whole(file)]
        if missing:
            for count, number in enumerate(missing):
                detail, tokens = f"window {number + 1} of {len(windows)}", count * windows.shape[1]
                self.progress(Update("dense reference", number, len(windows), detail, tokens))
                with torch.inference_mode():
                    ids = windows[number].to(self._dense_model.device)
                    states = final_states(self._dense_model, ids)
                    self._check_finite(self._dense_model, ids, states)
                temporary = files[number].with_suffix(".writing")
                save_file({"states": states.cpu().contiguous()}, temporary)
                temporary.replace(files[number])
        # What needs the dense model itself, before it goes.
        _ = self._dense_head, self._is_dense
        self.__dict__.pop("_dense_model", None)
        for file in files:
            yield load_file(file)["states"]


def evaluate(metric: str, subject: Subject) -> Result:
    """Run one metric; UserError when there is none of that name."""
    known = discover().metrics
    if metric not in known:
        raise UserError(f"metric {metric}: no such metric; known: {', '.join(known)}")
    return known[metric].fn(subject)


def final_states(opened: OpenModel, ids: Tensor) -> Tensor:
    """Hidden states after the last norm [length, d] for token ids [length]."""
    return opened.body(input_ids=ids[None], use_cache=False).last_hidden_state[0]


def token_losses(opened: OpenModel, states: Tensor, targets: Tensor) -> Tensor:
    """-ln Q(target) in float32 [n] from final states [n, d]."""
    rows = opened.readout.slices(states)
    losses = [
        nn.functional.cross_entropy(scores, wanted, reduction="none")
        for scores, wanted in zip(rows, targets.split(SLICE), strict=True)
    ]
    return torch.cat(losses)


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """Sum over rows of KL(softmax theirs || softmax ours) of logits [n, vocabulary] float32."""
    q, p = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
    return float(torch.linalg.vecdot(p.exp(), p - q).sum(dtype=torch.float64))


def compare_logits(ours: Tensor, theirs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Scores [n] of logits `ours` against the dense model's `theirs` [n, vocabulary] float32."""
    # As `token_losses` computes them, so that a perplexity does not depend on what else was measured.
    loss = nn.functional.cross_entropy(ours, targets, reduction="none")
    dense_loss = nn.functional.cross_entropy(theirs, targets, reduction="none")
    top, best = ours.max(dim=1, keepdim=True)
    dense_top, dense_best = theirs.max(dim=1, keepdim=True)
    best, dense_best = best[:, 0], dense_best[:, 0]
    # One exponential per logit serves both the normaliser and the expectation: it is most of the time.
    ours, theirs = ours - top, theirs - dense_top
    gap = theirs - ours
    q, p = ours.exp(), theirs.exp()
    norm, dense_norm = q.sum(dim=1), p.sum(dim=1)
    shift = dense_norm.log() - norm.log()
    forward = torch.linalg.vecdot(p, gap) / dense_norm - shift
    backward = shift - torch.linalg.vecdot(q, gap) / norm
    return {
        "nll": loss,
        "dense_nll": dense_loss,
        # Rounding can leave the divergence of nearly equal models a hair below zero.
        "kl": forward.clamp(min=0),
        "kl_reverse": backward.clamp(min=0),
        "agree": best == dense_best,
        "correct": best == targets,
        "dense_correct": dense_best == targets,
    }
