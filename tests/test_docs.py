"""What the documents say holds: tables are fresh, named files exist."""

import re
from pathlib import Path

import pytest

from backend.catalogue import with_tables
from backend.families import FAMILIES

ROOT = Path(__file__).parent.parent
# A number with a unit, or a KL or perplexity, as prose has them.
MEASURED = re.compile(
    r"\d[\d.,]*(?<![.,])\s?(?:%|[kMG]?B\b|ms\b|s\b|seconds\b|minutes\b|hours\b|times\b|tokens/s)"
    r"|(?:KL|perplexity)(?: of| is| was|:)? \d[\d.,]*(?<![.,])"
)
# Figures of the README that docs/log.md does not have in these words: the line there that they come from.
SOURCES = {
    "65 s": "| dense | 65 | 85 |",
    "11 minutes": "| sparsegpt 2:4, gptq 4-bit, eora r32 | 646 | 806 |",
    "13 minutes": "| sparsegpt 2:4, gptq 4-bit, eora r32 | 646 | 806 |",
}
# Those that are not measured: a level of confidence, a unit.
DEFINED = {"95 %", "1 MB"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_has_the_tables_of_the_registry():
    text = (ROOT / "README.md").read_text()
    assert "<!-- methods -->" in text
    assert "<!-- variables -->" in text
    assert with_tables(text) == text, "run `python -m backend.catalogue`"


def test_the_readme_names_every_family():
    told = (ROOT / "README.md").read_text()
    assert [found.name for found in FAMILIES.values() if found.name not in told] == []


def figures(markdown: str) -> list[str]:
    """The measured figures of a document's prose: front matter, code and tables are not."""
    prose = re.sub(r"\A---\n.*?\n---\n|^```.*?^```|^\|.*?$|`[^`]*`", "", markdown, flags=re.S | re.M)
    return [" ".join(found.split()) for found in MEASURED.findall(prose)]


def test_figures_are_found_in_prose_alone():
    prose = "It took 1.5 s, 30 % less,\nat a KL of 0.5 and 12,3 tokens/s, 3 times; 2:4 and 3-bit.\n"
    text = f"---\nk: 4 s\n---\n{prose}```\n9 s\n```\n| 8 % |\n`7 MB`"
    assert figures(text) == ["1.5 s", "30 %", "KL of 0.5", "12,3 tokens/s", "3 times"]


def test_every_measured_figure_of_the_readme_stands_in_the_log():
    log = (ROOT / "docs" / "log.md").read_text()
    found = set(figures((ROOT / "README.md").read_text())) - DEFINED
    for figure in found:
        told = SOURCES.get(figure, figure)
        assert re.search(rf"(?<![\d.,]){re.escape(told)}", log), f"{figure}: nothing in docs/log.md says so"
    assert set(SOURCES) <= found, "a source without its figure"


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
