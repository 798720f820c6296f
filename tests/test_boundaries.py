"""Who may import whom, read from the source itself."""

import ast
from pathlib import Path

import pytest

from backend.parts import ELSEWHERE

ROOT = Path(__file__).parent.parent
# The engine, asking, working and taking over, the only parts of backend that know the queue engine; presence,
# watching and tastings know the store too.
ENGINE = ("backend/engine.py", "backend/jobs.py", "backend/rescue.py", "backend/worker.py")
JOBS = (*ENGINE, "backend/presence.py", "backend/tastings.py", "backend/watch.py")
OURS = ("app", "backend", "store", "ui")
FILES = sorted(
    file
    for file in [ROOT / "app.py", *(f for part in OURS[1:] for f in (ROOT / part).rglob("*.py"))]
    if "__pycache__" not in file.parts
)


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, with the names taken from packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def touches(file: Path, *packages: str) -> set[str]:
    return {name for name in imports(file) if any(name == p or name.startswith(p + ".") for p in packages)}


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=place)
def test_arrows_point_the_way_the_design_says(file):
    name = place(file)
    if name.startswith("store/"):
        assert not touches(file, "app", "backend", "ui")
    if name.startswith("backend/"):
        assert not touches(file, "app", "ui", "gradio", "plotly")
        if name not in JOBS:
            assert not touches(file, "store", "dbos")
    if name.startswith("ui/"):
        assert not touches(file, "app")
        assert not {
            found
            for found in touches(file, "store")
            if not found.startswith(("store.results", "store.database"))
        } - {"store"}
    if name.startswith("ui/pages/"):
        assert not touches(file, "torch", "sqlalchemy", "transformers")
    if name == "ui/charts.py":
        assert not touches(file, "gradio")


@pytest.mark.parametrize(
    "file", [f for f in FILES if "/methods/" in place(f) and f.name != "__init__.py"], ids=place
)
def test_a_method_file_knows_only_its_mathematics(file):
    allowed = (
        "backend.costs", "backend.depth", "backend.errors", "backend.packing", "backend.parameters",
        "backend.parts",
        "backend.readout", "backend.registry", "backend.shrink", "backend.sizes", "backend.solvers",
        "backend.views", "torch", "pydantic", "typing", "math", "collections", "dataclasses",
        "functools", "statistics",
        *ELSEWHERE.values(),
    )  # fmt: skip
    assert {name for name in imports(file) if not name.startswith(allowed)} == set()
    methods = {name for name in imports(file) if name.startswith("backend.methods")}
    assert not methods


@pytest.mark.parametrize("file", [f for f in FILES if "/solvers/" in place(f)], ids=place)
def test_no_solver_knows_a_method(file):
    assert not touches(file, "backend.methods")


def test_the_queue_engine_has_two_doors():
    users = [place(file) for file in FILES if touches(file, "dbos")]
    assert users == list(ENGINE)


def test_every_module_says_what_it_is_for():
    for file in FILES:
        source = file.read_text().strip()
        if source:
            assert ast.get_docstring(ast.parse(source)), place(file)


def test_nothing_is_unpickled():
    for file in FILES:
        assert not touches(file, "pickle", "torch.load", "joblib", "dill"), place(file)
        assert "torch.load(" not in file.read_text(), place(file)
