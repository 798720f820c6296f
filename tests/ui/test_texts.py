"""Texts of the pages: all in one place, each used, and a language can take the place of English."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.errors import UserError
from ui import texts
from ui.quantities import duration

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "ui").glob("*.py"), *(ROOT / "ui" / "pages").glob("*.py")])
ENGLISH = json.loads((ROOT / "ui" / "texts" / "en.json").read_text(encoding="utf-8"))
# What looks like a sentence and is none, and why.
NO_TEXTS = {
    "a font": ("Segoe UI", "Roboto", "Noto Sans", "Menlo", "Consolas", "Liberation Mono"),
    "a name": ("Paretoscope", "recipe.json", "*.mlp.*", "compare?runs=...", "CC BY-SA 4.0", "Viridis"),
    "a format": ("CSV", "JSON", "PNG", "SVG"),
    "classes": ("act danger",),
    "kinds of methods in order": ("prune quantize factorize compensate",),
    "a word of backend or of code, told by a text": (
        "within noise",
        "baseline broken",
        "does not hold",
        "not tested",
    ),
    "an answer to programs": ("Not Found",),
}
# Scripts, commands and markup, and an error of who writes a method: how they begin.
_CODE = (
    *("watch('value'", "(known, href) =>", "const stage", "{script}\nconst", "document.body.", "data-send"),
    *("python app.py export", "python app.py run", "parameter \0: there is no form field"),
)
# What models are asked and read stays as it is: it is data, and its language is part of the question.
_QUESTIONS = {"PROMPTS", "SETS", "_TEXT"}
# What these are called with is read by people, even if it is a single word.
_SPOKEN = {"button", "link", "badge", "Button", "Tab", "Accordion", "facts"}
_SPOKEN_KEYWORDS = {"label", "info", "placeholder", "hint"}
_ATTRIBUTE = re.compile(r"""(?:aria-label|aria-roledescription|title|alt|data-label)=["']([^"'<>]*)["']""")
_TAG = re.compile(r'</?[a-zA-Z!][^<>]*>|^[^<>]*="[^<>]*">|<[a-z][^<>]*$')
_SENTENCE = re.compile(r"[A-Za-z]{2,}[,.:;]? +(?:\x00[,.:;]? +)*[A-Za-z]{2,}|^[A-Z][a-z]+(?:[ -]|$)")


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def spoken(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that looks like one for people; fields stand as a null character."""
    quiet, loud = set(), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            quiet.add(body[0].value)
        for named in ("slice", "annotation", "returns"):
            if inside := getattr(node, named, None):
                quiet |= set(ast.walk(inside))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            named = node.targets if isinstance(node, ast.Assign) else [node.target]
            questions = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
            questions = questions if {getattr(name, "id", "") for name in named} & _QUESTIONS else []
            quiet |= {inside for question in questions for inside in ast.walk(question)}
        if isinstance(node, ast.JoinedStr):
            quiet |= {value for value in node.values if isinstance(value, ast.Constant)}
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("say", "many"):
                quiet.add(node.args[0])
            elif name in _SPOKEN and node.args:
                loud.add(node.args[0])
            loud |= {keyword.value for keyword in node.keywords if keyword.arg in _SPOKEN_KEYWORDS}
    for node in ast.walk(tree):
        if node in quiet:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(
                str(value.value) if isinstance(value, ast.Constant) else "\0" for value in node.values
            )
        else:
            continue
        for part in (*_ATTRIBUTE.findall(text), *_TAG.split(text)):
            if _SENTENCE.search(part.strip()) or (node in loud and re.search("[A-Za-z]", part)):
                yield node.lineno, part.strip()


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("say", "many"):
            yield node


def asked() -> Iterator[tuple[str, str, set[str]]]:
    """(where, key, names of the values) of every text that the pages ask for."""
    for file in FILES:
        for call in calls(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{place(file)}:{call.lineno}"
            first = call.args[0]
            assert isinstance(first, ast.Constant), f"{where}: the key is not written out"
            assert all(keyword.arg for keyword in call.keywords), f"{where}: values are not written out"
            names = {str(keyword.arg) for keyword in call.keywords}
            many = getattr(call.func, "id", "") == "many"
            for key in (f"{first.value}.one", f"{first.value}.many") if many else (first.value,):
                # `count` may stay unsaid: "the run" needs no number.
                yield where, key, names | (texts.fields(ENGLISH.get(key, "")) & {"count"} if many else set())


def test_every_text_that_is_asked_for_exists_with_its_fields():
    for where, key, names in asked():
        assert key in ENGLISH, f"{where}: there is no text {key}"
        assert texts.fields(ENGLISH[key]) == names, f"{where}: {key}"


def test_every_text_is_used():
    assert set(ENGLISH) - {key for _, key, _ in asked()} == set()


@pytest.mark.parametrize("file", FILES, ids=place)
def test_no_sentence_stands_outside_the_texts(file: Path):
    known = {text for texts_ in NO_TEXTS.values() for text in texts_}
    found = [
        (line, text)
        for line, text in spoken(ast.parse(file.read_text(encoding="utf-8")))
        if text not in known and not text.startswith(_CODE)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("maker", "name"), [("panel", "panel"), ("reader", "reader"), ("story_sheet", "story")]
)
def test_a_script_says_what_it_is_given(maker: str, name: str):
    tree = ast.parse((ROOT / "ui" / f"{maker}.py").read_text(encoding="utf-8"))
    given = [
        {str(keyword.arg) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "script"
    ]
    script = (ROOT / "ui" / f"{name}.js").read_text(encoding="utf-8")
    assert [set(re.findall(r"WORDS\.(\w+)", script))] == given


@pytest.mark.parametrize("file", sorted((ROOT / "ui").glob("*.js")), ids=place)
def test_no_sentence_stands_in_a_script(file: Path):
    code = re.sub(r"^\s*//.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # Names of keys are one word; a sentence begins with a capital or joins words around a value.
    assert re.findall(r"""['"`][A-Z][a-z]+ [a-z]|[a-z] \$\{[^}]*\}[ ,]+[a-z]{2}""", code) == []


def test_the_search_for_sentences_finds_them():
    source = """
def made(run):
    '''Not this sentence.'''
    button("log", "log-card")
    gr.Textbox(label="Prompt", elem_id="the prompt")
    return f'<p class="two words">There is no <b>{run}</b>.</p>' + say("a.b") + '<i title="Go on">'
"""
    found = [text for _, text in spoken(ast.parse(source))]
    assert {"log", "Prompt", "There is no", "Go on"} <= set(found)
    assert "log-card" not in found
    assert not any("Not this" in text for text in found)


def test_a_translation_is_used_and_its_gaps_are_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "en.json").write_text(json.dumps(ENGLISH))
    (tmp_path / "nl.json").write_text('{"number.minutes": "{minutes} minuten"}')
    monkeypatch.setattr(texts, "_TEXTS", texts.read("nl", tmp_path))
    assert duration(1200) == "20 minuten"
    assert duration(75) == "1 min 15 s"


def test_one_and_many_have_texts_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(texts, "_TEXTS", {"a.one": "{count} run of {who}", "a.many": "{count} runs of {who}"})
    assert texts.many("a", 1, who="Ada") == "1 run of Ada"
    assert texts.many("a", 0, who="Ada") == "0 runs of Ada"


def test_an_unknown_language_is_told_with_those_there_are(tmp_path: Path):
    (tmp_path / "en.json").write_text("{}")
    (tmp_path / "nl.json").write_text("{}")
    for language in ("tlh", "../nl", ""):
        with pytest.raises(UserError, match="it takes one of en, nl"):
            texts.read(language, tmp_path)


def test_a_translation_with_a_field_of_its_own_is_refused(tmp_path: Path):
    (tmp_path / "en.json").write_text('{"a": "{run} is gone"}')
    (tmp_path / "nl.json").write_text('{"a": "{model} is weg"}')
    with pytest.raises(UserError, match="a has no field model"):
        texts.read("nl", tmp_path)
