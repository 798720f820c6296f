"""Finished blocks of a walk on disk, so that an interrupted run goes on at the block where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.artifacts import is_whole
from backend.errors import UserError
from backend.parts import Part, rebuild
from backend.views import Kept

# Before the names of parameters of the model in a file.
_CHANGED = "="


class Checkpoints:
    """Parts and report rows of each block and walk, a file each in one folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        label: str,
        block: int,
        parts: Mapping[str, tuple[Part, ...]],
        rows: list[dict[str, Any]],
        changed: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep what the walk `label` made of a block, and `changed` parameters of the model itself.

        UserError when the disk is full.
        """
        tensors = {"nothing": torch.zeros(0)}
        for name, tensor in (changed or {}).items():
            tensors[f"{_CHANGED}{name}"] = tensor.detach().contiguous().cpu()
        described: dict[str, list[dict[str, Any]]] = {}
        for name, pieces in parts.items():
            described[name] = [{"kind": piece.kind, "settings": piece.settings()} for piece in pieces]
            for number, piece in enumerate(pieces):
                for key, tensor in piece.tensors().items():
                    tensors[f"{name}#{number}.{key}"] = tensor.contiguous().cpu()
        metadata = {"parts": json.dumps(described), "rows": json.dumps(rows)}
        self._write(self._file(label, block), tensors, metadata, f"block {block + 1}")

    def has(self, label: str, block: int) -> bool:
        """Whether the walk `label` has finished a block."""
        return is_whole(self._file(label, block))

    def load(self, label: str, block: int) -> dict[str, tuple[Part, ...]] | None:
        """The parts of each linear, or None when the block is not finished."""
        path = self._file(label, block)
        if not is_whole(path):
            return None
        with safe_open(path, "pt") as opened:
            described = json.loads(opened.metadata()["parts"])
            return {
                name: tuple(
                    rebuild(
                        piece["kind"],
                        piece["settings"],
                        {
                            key.split("#", 1)[1].split(".", 1)[1]: opened.get_tensor(key).to(self._device)
                            for key in opened.keys()  # noqa: SIM118 - safe_open is not a mapping
                            if key.startswith(f"{name}#{number}.")
                        },
                    )
                    for number, piece in enumerate(pieces)
                )
                for name, pieces in described.items()
            }

    def changed(self, label: str, block: int) -> dict[str, Tensor]:
        """The parameters of the model that the walk changed in a finished block."""
        with safe_open(self._file(label, block), "pt") as opened:
            return {
                key.removeprefix(_CHANGED): opened.get_tensor(key).to(self._device)
                for key in opened.keys()  # noqa: SIM118 - safe_open is not a mapping
                if key.startswith(_CHANGED)
            }

    def rows(self, label: str, block: int) -> list[dict[str, Any]]:
        """The report rows of a finished block."""
        with safe_open(self._file(label, block), "pt") as opened:
            return json.loads(opened.metadata()["rows"])

    def keep_plan(self, number: int, plan: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the plan as stage `number` left it."""
        temporary = self._folder / f"plan-{number}.writing"
        temporary.write_text(json.dumps(plan), encoding="utf-8")
        temporary.replace(temporary.with_suffix(".json"))

    def plan(self, number: int) -> dict[str, dict[str, Any]] | None:
        """The plan as stage `number` left it, or None when it has not finished."""
        path = self._folder / f"plan-{number}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def kept(self, number: int) -> Kept:
        """What stage `number` leaves for itself in case it is stopped; UserError when the disk is full."""
        path = self._folder / f"stage-{number}-state.safetensors"

        def load() -> dict[str, Tensor] | None:
            if not is_whole(path):
                return None
            return {name: tensor.to(self._device) for name, tensor in load_file(path).items()}

        def save(tensors: Mapping[str, Tensor]) -> None:
            whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            self._write(path, whole, None, f"how far stage {number} is")

        return Kept(load, save)

    @staticmethod
    def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None, what: str) -> None:
        temporary = path.with_suffix(".writing")
        try:
            save_file(tensors, temporary, metadata)
        except (OSError, SafetensorError) as error:
            if "No space left" in str(error):
                raise UserError(
                    f"the disk is full: {what} could not be kept; free some space and retry"
                ) from None
            raise
        temporary.replace(path)

    def _file(self, label: str, block: int) -> Path:
        return self._folder / f"stage-{label}-block-{block:03d}.safetensors"
