"""What the environment says about this machine: folders, databases, device, rights. Read once, passed on."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.errors import UserError

# (variable, default, meaning): the table in the README is made from this list.
VARIABLES: tuple[tuple[str, str, str], ...] = (
    ("PARETOSCOPE_HOME", "the user's data folder", "where models, texts, artifacts and databases live"),
    (
        "PARETOSCOPE_DATABASE_URL",
        "SQLite in the home",
        "results: sqlite:///FILE or postgresql://USER@HOST/NAME",
    ),
    ("PARETOSCOPE_QUEUE_URL", "SQLite in the home, or the PostgreSQL above", "the queue's own database"),
    ("PARETOSCOPE_DEVICE", "auto", "auto (cuda when there is one, else cpu), cpu, cuda or cuda:N"),
    (
        "PARETOSCOPE_COMPUTE",
        "auto",
        "what 16-bit models are computed in: bfloat16 (as stored), float32, or auto, which takes what this "
        "processor multiplies faster",
    ),
    (
        "PARETOSCOPE_ROOTS",
        "user's home, current folder, data home",
        "folders that local models and file: texts may come from, separated like PATH",
    ),
    (
        "PARETOSCOPE_TRUST_REMOTE_CODE",
        "0",
        "1 lets a tokenizer bring its own Python code: only from people you trust",
    ),
    ("PARETOSCOPE_STARTER", "1", "0 keeps the first start from queueing the starter sweep"),
    ("PARETOSCOPE_QUOTA", "0", "how many runs one user may have queued or running at a time; 0 is no limit"),
    ("PARETOSCOPE_AUTH", "empty: no log-in", "user:password,user2:password2"),
    (
        "PARETOSCOPE_JOURNAL",
        "wal",
        "SQLite's journal; delete for a home on a network mount, where wal is unsafe",
    ),
    ("PARETOSCOPE_WORKER", "local", "this worker's name; give each worker that shares a database its own"),
    (
        "PARETOSCOPE_STALE_AFTER",
        "30",
        "seconds without a heartbeat after which other workers take over a worker's runs",
    ),
    (
        "PARETOSCOPE_CACHE_GB",
        "20",
        "gigabytes of statistics and dense hidden states kept for later runs; the longest unused go first",
    ),
    (
        "PARETOSCOPE_LANGUAGE",
        "en",
        "the pages' language: the name of a file of ui/texts; English where it has gaps",
    ),
)


def default_home(environ: Mapping[str, str]) -> Path:
    """The folder for application data that the system's own convention names."""
    user = Path(environ.get("HOME") or Path.home())
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or user / "AppData" / "Local") / "Paretoscope"
    if sys.platform == "darwin":
        return user / "Library" / "Application Support" / "Paretoscope"
    return Path(environ.get("XDG_DATA_HOME") or user / ".local" / "share") / "paretoscope"


def _number(environ: Mapping[str, str], variable: str, default: float, least: float) -> float:
    text = environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = least - 1
    if not least <= number < float("inf"):
        raise UserError(f"{variable} is {text!r}; it takes a number of at least {least:g}")
    return number


def _choice(environ: Mapping[str, str], variable: str, default: str, allowed: tuple[str, ...]) -> str:
    text = (environ.get(variable) or default).lower()
    if text not in allowed:
        raise UserError(f"{variable} is {text!r}; it takes one of {', '.join(allowed)}")
    return text


def _switch(environ: Mapping[str, str], variable: str, default: str) -> bool:
    choices = ("0", "1", "false", "true", "no", "yes", "off", "on")
    return _choice(environ, variable, default, choices) in ("1", "true", "yes", "on")


def _people(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [entry.partition(":") for entry in text.split(",") if entry.strip()]
    if any(not user.strip() or not password for user, _, password in pairs):
        raise UserError("PARETOSCOPE_AUTH takes user:password pairs, separated by commas")
    return tuple((user.strip(), password) for user, _, password in pairs)


@dataclass(frozen=True)
class Host:
    """One machine's settings; `VARIABLES` says where each comes from."""

    home: Path
    database_url: str
    queue_url: str
    device: str = "auto"
    compute: str = "auto"
    roots: tuple[Path, ...] = ()
    trust_remote_code: bool = False
    starter: bool = True
    quota: int = 0
    auth: tuple[tuple[str, str], ...] = ()
    journal: str = "wal"
    executor_id: str = "local"
    stale_after: float = 30.0
    cache_bytes: float = 20e9
    language: str = "en"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Host":
        """Read every variable; a value that makes no sense is an error, not a default."""
        home = Path(environ.get("PARETOSCOPE_HOME") or default_home(environ)).expanduser().resolve()
        database_url = environ.get("PARETOSCOPE_DATABASE_URL") or f"sqlite:///{home / 'results.sqlite'}"
        shared = database_url if database_url.startswith("postgres") else f"sqlite:///{home / 'queue.sqlite'}"
        roots = [
            Path(root).expanduser() for root in environ.get("PARETOSCOPE_ROOTS", "").split(os.pathsep) if root
        ]
        return cls(
            home=home,
            database_url=database_url,
            queue_url=environ.get("PARETOSCOPE_QUEUE_URL") or shared,
            device=environ.get("PARETOSCOPE_DEVICE") or "auto",
            compute=_choice(environ, "PARETOSCOPE_COMPUTE", "auto", ("auto", "bfloat16", "float32")),
            roots=tuple(root.resolve() for root in roots or [Path.home(), Path.cwd(), home]),
            trust_remote_code=_switch(environ, "PARETOSCOPE_TRUST_REMOTE_CODE", "0"),
            starter=_switch(environ, "PARETOSCOPE_STARTER", "1"),
            quota=int(_number(environ, "PARETOSCOPE_QUOTA", 0, 0)),
            auth=_people(environ.get("PARETOSCOPE_AUTH", "")),
            journal=_choice(environ, "PARETOSCOPE_JOURNAL", "wal", ("wal", "delete")),
            executor_id=environ.get("PARETOSCOPE_WORKER") or "local",
            stale_after=_number(environ, "PARETOSCOPE_STALE_AFTER", 30.0, 1.0),
            cache_bytes=_number(environ, "PARETOSCOPE_CACHE_GB", 20.0, 0.0) * 1e9,
            language=environ.get("PARETOSCOPE_LANGUAGE") or "en",
        )

    @classmethod
    def at(cls, home: str | Path) -> "Host":
        """The environment's settings with another data home, as child processes and tests need it."""
        return cls.from_environment({**os.environ, "PARETOSCOPE_HOME": str(home)})

    def _folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def assets(self) -> Path:
        """What came in the pinned wheels."""
        return self._folder("assets")

    @property
    def models(self) -> Path:
        """Models that are ours: the embedded one."""
        return self._folder("models")

    @property
    def cache(self) -> Path:
        """What can be computed again: token ids, statistics, dense hidden states."""
        return self._folder("cache")

    @property
    def artifacts(self) -> Path:
        """Compressed models, one file a digest."""
        return self._folder("artifacts")

    @property
    def runs(self) -> Path:
        """Scratch of runs under way: runs/<digest>."""
        return self._folder("runs")

    @property
    def logs(self) -> Path:
        """What worker and child processes print."""
        return self._folder("logs")


def check_local(path: str | Path, host: Host) -> Path:
    """The real place of a local path, symbolic links followed, if it lies below one of the allowed roots."""
    try:
        place = Path(path).expanduser().resolve()
        place.exists()
        inside = any(place.is_relative_to(root.resolve()) for root in host.roots)
    except (OSError, ValueError, RuntimeError) as problem:
        raise UserError(f"{str(path)!r} is not a path that can be read: {problem}") from problem
    if not inside:
        allowed = ", ".join(str(root) for root in host.roots)
        raise UserError(f"{str(path)!r} lies outside the allowed folders ({allowed}); see PARETOSCOPE_ROOTS")
    return place
