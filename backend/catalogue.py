"""`python -m backend.catalogue`: renew the table of methods in the README from the registry."""

from pathlib import Path

from backend.host import VARIABLES
from backend.registry import Claim, discover

_README = Path(__file__).parent.parent / "README.md"
_WHOSE = {"paper": "the paper's", "ours": "ours"}


def methods_table() -> str:
    """Markdown: every method with what it does, its parameters, its claim and whose it is, its paper."""
    rows = ["| method | what it does | parameters | claim | paper |", "|---|---|---|---|---|"]
    for found in discover().methods.values():
        fields = ", ".join(f"`{name}` = {field.default}" for name, field in found.params.model_fields.items())
        number = found.paper.removeprefix("arXiv:")
        link = f"<{number}>" if number.startswith("https:") else f"[{number}](https://arxiv.org/abs/{number})"
        summary = found.summary.replace("|", "\\|")
        rows.append(f"| `{found.id}` | {summary} | {fields} | {_claim(found.claim)} | {link} |")
    return "\n".join(rows)


def _claim(claim: Claim | None) -> str:
    if claim is None:
        return ""
    told = f"{_WHOSE[claim.whose]}: {claim.text}"
    return f"{told}. The paper: {claim.paper_says}" if claim.paper_says else told


def variables_table() -> str:
    """Markdown: every environment variable with its default and meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in VARIABLES]
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The README's text with both tables renewed between their marks."""
    for name, table in (("methods", methods_table()), ("variables", variables_table())):
        start, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    _README.write_text(with_tables(_README.read_text()))
