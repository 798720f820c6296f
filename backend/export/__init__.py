"""One format per file; each has export(artifact, folder, host)."""

import importlib
import pkgutil
import tempfile
from pathlib import Path

from backend.errors import UserError
from backend.host import Host


def formats() -> list[str]:
    """The names of the formats: the files of this package."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__))


def export(artifact: Path, name: str, folder: Path, host: Host) -> None:
    """Write `folder` whole or not at all; UserError for an unknown format or a folder that is in use."""
    if name not in formats():
        raise UserError(f"export: format is '{name}'; allowed: {', '.join(formats())}")
    if not artifact.is_file():
        raise UserError(f"export: the artifact {artifact.name} is not there any more; run its recipe again")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: {folder} exists and is not an empty folder; name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as made:
        written = Path(made) / "out"
        written.mkdir()
        importlib.import_module(f"{__name__}.{name}").export(artifact, written, host)
        if folder.exists():
            folder.rmdir()
        written.rename(folder)


def packed_path(host: Host, run: str, name: str) -> Path:
    """Where the export of a run lies as one file, until the cache is full of others."""
    return host.cache / "exports" / f"{run}-{name}" / f"{run}-{name}.zip"
