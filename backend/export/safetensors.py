"""The artifact as it is, packed, beside the files that are needed to use it elsewhere.

artifact.safetensors (header: config, recipe, kinds of the parts), config.json, recipe.json, the tokenizer and
the generation rules.
`backend.artifacts.open_artifact` reads it back; other tools see plain tensors and a JSON description of them.
"""

import json
import shutil
from pathlib import Path

from backend.artifacts import exported_with, read_metadata
from backend.host import Host
from backend.whole_files import replace_file


def export(artifact: Path, folder: Path, host: Host) -> None:
    """Write the folder; raises UserError when the artifact or the tokenizer cannot be read."""
    metadata = read_metadata(artifact)
    shutil.copyfile(artifact, folder / "artifact.safetensors")
    replace_file(folder / "config.json", json.dumps(metadata["config"], indent=2).encode())
    replace_file(folder / "recipe.json", json.dumps(metadata["recipe"], indent=2).encode())
    exported_with(metadata, folder, host)
