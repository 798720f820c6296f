"""All texts of the pages, by key: English in `en.json`, other languages in files beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from backend.errors import UserError
from backend.host import Host

FOLDER = Path(__file__).parent
ENGLISH = "en"


def say(key: str, /, **values: object) -> str:
    """The text of this key with its fields filled in; values that go into markup come escaped."""
    return _TEXTS[key].format(**values)


def many(key: str, count: int, /, **values: object) -> str:
    """The text for so many: KEY.one for one, else KEY.many; both may hold the field `count`."""
    return say(f"{key}.one" if count == 1 else f"{key}.many", count=count, **values)


def read(language: str, folder: Path = FOLDER) -> dict[str, str]:
    """The texts of a language; what it lacks is English. UserError where there is no such language."""
    there = sorted(file.stem for file in folder.glob("*.json"))
    if language not in there:
        raise UserError(f"PARETOSCOPE_LANGUAGE is {language!r}; it takes one of {', '.join(there)}")
    english, own = _read(folder / f"{ENGLISH}.json"), _read(folder / f"{language}.json")
    for key in english.keys() & own.keys():
        # A field that nobody fills would only be noticed by the visitor who comes to that text.
        if unknown := fields(own[key]) - fields(english[key]):
            raise UserError(f"texts in {language!r}: {key} has no field {', '.join(sorted(unknown))}")
    return english | own


def fields(text: str) -> set[str]:
    """The names that a text wants to have filled in."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def script(**words: str) -> str:
    """The words that a script says, as its constant WORDS; `filled` puts values in the place of {fields}."""
    return (
        f"const WORDS = {json.dumps(words)};\n"
        "const filled = (text, values) => text.replace(/\\{(\\w+)\\}/g, (_, name) => values[name]);\n"
    )


def _read(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


LANGUAGE = Host.from_environment().language
_TEXTS = read(LANGUAGE)
