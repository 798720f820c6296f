"""What the documents say holds: tables are fresh, named files exist."""

import re
from pathlib import Path

import pytest

from backend.catalogue import with_tables
from backend.families import FAMILIES

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_has_the_tables_of_the_registry():
    text = (ROOT / "README.md").read_text()
    assert "<!-- methods -->" in text
    assert "<!-- variables -->" in text
    assert with_tables(text) == text, "run `python -m backend.catalogue`"


def test_the_readme_names_every_family():
    told = (ROOT / "README.md").read_text()
    assert [found.name for found in FAMILIES.values() if found.name not in told] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_file_that_is_named_exists(document):
    text = document.read_text()
    named = re.findall(r"`((?:backend|store|ui|tests|docs|bench)/[\w./-]+)`", text)
    linked = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text)
    for name in named:
        assert (ROOT / name).exists(), name
    for name in linked:
        assert (document.parent / name.split("#")[0]).exists(), name


def test_decisions_stay_short():
    for file in (ROOT / "docs" / "decisions").glob("*.md"):
        assert len(file.read_text().splitlines()) < 40, file.name


def test_contributing_opens_with_adding_a_method_and_stays_short():
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert lines[2] == "## Add a method in one file"
    assert len(lines) < 80
