"""Texts: parts that never overlap, blocks, protocol stamps, and bad files said in one sentence."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from backend import assets, documents, text
from backend.errors import UserError
from backend.host import Host


def words(bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are w0, w1, ...; with a BOS by default if asked."""
    vocabulary = {"<unk>": 0, "<s>": 1, **{f"w{number}": number + 2 for number in range(500)}}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", model_max_length=16
    )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PARETOSCOPE_ROOTS", str(tmp_path))
    return Host.at(tmp_path / "home")


@pytest.fixture
def articles(host: Host) -> Host:
    """A home with 200 articles, two of which say the same under different titles."""
    rows = {f"w{n}": {"title": f"w{n}", "extract": " ".join([f"w{n}"] * 20)} for n in range(200)}
    rows["w499"] = {"title": "w499", "extract": rows["w0"]["extract"]}
    place = assets.articles_file(host, "en")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(rows), encoding="utf-8")
    return host


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """A text of the words w0 to w99."""
    place = tmp_path / "numbers.txt"
    place.write_text(" ".join(f"w{number}" for number in range(100)))
    return f"file:{place}"


def test_windows_follow_each_other_from_the_start(host: Host, numbers: str) -> None:
    got = text.evaluation(numbers, words(), length=8, windows=3, host=host)
    assert got.ids.dtype == torch.long
    assert torch.equal(got.ids, torch.arange(2, 26).view(3, 8))
    assert text.evaluation(numbers, words(), length=8, windows=0, host=host).ids.shape == (12, 8)


def test_the_stamp_says_all_that_a_number_depends_on(host: Host, numbers: str) -> None:
    got = text.evaluation(numbers, words(), length=8, windows=3, host=host).protocol
    whole = Path(numbers[5:]).read_bytes()
    assert got == {
        **{
            "text": numbers,
            "split": "file",
            "digest": hashlib.sha256(whole).hexdigest()[:16],
            "join": "none",
        },
        **{"bos": "none", "window": 8, "stride": 8, "windows": 3, "tokens": 21, "loss_dtype": "float32"},
        "tokenizer": text.tokenizer_digest(words()),
    }
    with_bos = text.evaluation(numbers, words(bos=True), length=8, windows=3, host=host)
    assert with_bos.protocol["bos"] == "tokenizer default"
    assert with_bos.ids[0, 0] == 1
    assert with_bos.ids[1, 0] != 1
    assert with_bos.protocol["tokenizer"] != got["tokenizer"]


def test_samples_are_non_overlapping_blocks_picked_by_the_seed(host: Host, numbers: str) -> None:
    first = text.calibration(numbers, words(), samples=6, length=8, seed=0, host=host)
    again = text.calibration(numbers, words(), samples=6, length=8, seed=0, host=host)
    other = text.calibration(numbers, words(), samples=6, length=8, seed=1, host=host)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)
    assert set((first.ids[:, 0] % 8).tolist()) == {2}
    assert len(set(first.ids[:, 0].tolist())) == 6
    assert {key: first.protocol[key] for key in ("samples", "length", "seed")} == {
        **{"samples": 6, "length": 8, "seed": 0},
    }


@pytest.mark.parametrize("length", [4, 8, 12])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_blocks_that_judge_share_no_token_with_those_that_teach(
    host: Host, numbers: str, length: int, seed: int
) -> None:
    taught = text.calibration(numbers, words(), samples=6, length=8, seed=seed, host=host)
    judged = text.held_out(numbers, words(), 50, length, (6, 8, seed), host)
    assert set(taught.ids.flatten().tolist()).isdisjoint(judged.ids.flatten().tolist())
    assert judged.ids.shape[1] == length
    assert len(judged.ids) >= 1
    assert judged.protocol["apart_from"] == "6 samples of 8"
    few = text.held_out(numbers, words(), 2, 4, (6, 8, seed), host)
    assert few.ids.shape == (2, 4)


def test_a_calibration_that_leaves_nothing_to_judge_by_is_refused(host: Host, numbers: str) -> None:
    with pytest.raises(UserError, match=r"12 samples of 8 tokens leave no 8 tokens in a row.*fewer samples"):
        text.held_out(numbers, words(), 4, 8, (12, 8, 0), host)


MARKED = "w1 w2 w3 w4"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (MARKED.encode(), {}),
        (MARKED.encode("utf-8-sig"), {"encoding": "utf-8-sig"}),
        (MARKED.encode("utf-16"), {"encoding": "utf-16"}),
        (b"\xfe\xff" + MARKED.encode("utf-16-be"), {"encoding": "utf-16"}),
        (MARKED.encode("utf-32"), {"encoding": "utf-32"}),
        (MARKED.replace(" ", "\r\n").encode(), {}),
        (MARKED.replace(" ", "\u2028").encode(), {}),
        (b"\x1bw1 w2\x0c w3 w4".replace(b"\x1b", b""), {}),
    ],
    ids=["plain", "utf-8 mark", "utf-16", "utf-16 be", "utf-32", "dos", "separator", "form feed"],
)
def test_texts_are_read_in_the_encodings_that_people_have(
    host: Host, tmp_path: Path, content: bytes, told: dict[str, str]
) -> None:
    place = tmp_path / "text.txt"
    place.write_bytes(content)
    got = text.evaluation(f"file:{place}", words(), length=4, windows=1, host=host)
    assert got.ids.tolist() == [[3, 4, 5, 6]]
    assert {key: got.protocol[key] for key in ("encoding", "repaired") if key in got.protocol} == told


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "w1 \\ud83d w2"}\n{"text": "w3 \\ude00 w4"}',
        '{"text": "w1 \\ud83d w2"}\n{"text": "w3 \\ude00 w4"}'.encode("utf-16"),
        b'{"text": "w1 \xed\xa0\xbd w2"}\n{"text": "w3 \xed\xb8\x80 w4"}',
    ],
    ids=["escapes", "utf-16", "bytes"],
)
def test_half_an_emoji_is_replaced_and_counted(host: Host, tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "emoji.jsonl"
    place.write_bytes(content)
    got = text.evaluation(f"file:{place}", words(), length=6, windows=1, host=host)
    assert got.ids.tolist() == [[3, 0, 4, 5, 0, 6]]
    assert got.protocol["repaired"] == "2 half characters"
    whole = '{"text": "w1 \\ud83d\\ude00 w2 w3 w4"}'
    place.write_text(whole)
    assert "repaired" not in text.evaluation(f"file:{place}", words(), 5, 1, host).protocol


def test_a_text_that_is_too_short_says_what_it_holds(host: Host, numbers: str) -> None:
    with pytest.raises(
        UserError, match=r"holds 12 windows of 8 tokens, 13 are asked for; ask for at most 12"
    ):
        text.evaluation(numbers, words(), length=8, windows=13, host=host)
    with pytest.raises(UserError, match=r"holds 0 windows of 101 tokens.*100 tokens in all"):
        text.evaluation(numbers, words(), length=101, windows=0, host=host)
    with pytest.raises(UserError, match=r"holds 1 samples of 60 tokens, 2 are asked for"):
        text.calibration(numbers, words(), samples=2, length=60, seed=0, host=host)


def test_parts_of_the_articles_never_overlap(articles: Host) -> None:
    place = assets.articles_file(articles, "en")
    parts = {part: documents.articles(place, part) for part in ("calibration", "validation", "test")}
    bodies = {
        part: {document.split("\n\n")[1] for document in documents} for part, documents in parts.items()
    }
    assert sum(len(documents) for documents in parts.values()) == 200
    assert len(bodies["calibration"] | bodies["validation"] | bodies["test"]) == 200
    assert len(parts["calibration"]) > len(parts["test"]) > len(parts["validation"]) > 0
    for document in parts["test"]:
        title = document.split("\n\n")[0]
        assert int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100 >= 70


def test_articles_are_calibration_and_evaluation_text(articles: Host) -> None:
    calibration = text.calibration("wikipedia-en", words(), samples=4, length=16, seed=0, host=articles)
    evaluation = text.evaluation("wikipedia-en", words(), length=16, windows=4, host=articles)
    assert (calibration.protocol["split"], evaluation.protocol["split"]) == ("calibration", "test")
    assert set(calibration.ids.unique().tolist()).isdisjoint(evaluation.ids.unique().tolist())
    assert evaluation.protocol["join"] == "\n\n"


def test_ids_are_kept_and_a_torn_file_is_made_again(host: Host, numbers: str) -> None:
    first = text.evaluation(numbers, words(), length=8, windows=0, host=host)
    (kept,) = (host.cache / "tokens").iterdir()
    assert len(np.load(kept)) == 100
    kept.write_bytes(b"torn")
    assert torch.equal(text.evaluation(numbers, words(), length=8, windows=0, host=host).ids, first.ids)
    assert len(np.load(kept)) == 100


def test_lines_of_a_jsonl_file_are_documents(host: Host, tmp_path: Path) -> None:
    place = tmp_path / "d.jsonl"
    place.write_text('{"text": "w1 w2"}\n\n{"text": "w3 w4", "id": 7}\n')
    got = text.evaluation(f"file:{place}", words(), length=4, windows=1, host=host)
    assert got.ids.tolist() == [[3, 4, 5, 6]]
    assert got.protocol["join"] == "\n\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.jsonl", b'{"text": "w1"}\n{"text": \n', r"bad.jsonl, line 2: not JSON"),
        ("other.jsonl", b'{"text": "w1"}\n{"words": "w1"}\n', r"line 2: needs an object with a string field"),
        ("latin.txt", "w1\ncaf\u00e9".encode("latin-1"), r"latin.txt, line 2, is not UTF-8: byte 6 is 0xe9"),
        ("latin.jsonl", '{"text": "caf\u00e9"}'.encode("latin-1"), r"line 1, is not UTF-8: byte 13 is 0xe9"),
        ("torn.txt", b"\xff\xfew1\x00", r"is not the UTF-16 that its byte order mark says"),
        ("unmarked.txt", "w1 w2".encode("utf-16-le"), r"line 1: holds a NUL character.*allowed: UTF-8"),
        ("deep.jsonl", b"[" * 100_000, r"deep.jsonl, line 1: (nested too deeply|not JSON)"),
        ("list.jsonl", b'["w1"]\n', r"line 1: needs an object with a string field"),
        ("null.jsonl", b'{"text": "w1"}\n{"text": null}\n', r"line 2: needs an object with a string field"),
        ("image.png", b"x", r"must be a .txt file or a .jsonl file"),
        ("missing.txt", None, r"is not a file on this machine"),
        ("empty.txt", b"", r"holds 0 windows"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(
    host: Host, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        text.evaluation(f"file:{tmp_path / name}", words(), length=4, windows=1, host=host)


def test_a_file_outside_the_roots_is_refused_even_behind_a_link(
    host: Host, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("w1 " * 100)
    (tmp_path / "link.txt").symlink_to(outside)
    for path in (outside, tmp_path / "link.txt", tmp_path / ".." / outside.parent.name / "secret.txt"):
        with pytest.raises(UserError, match="outside the allowed folders"):
            text.check_text(f"file:{path}", host)


def test_an_unknown_text_names_the_known_ones(host: Host) -> None:
    with pytest.raises(
        UserError, match="wikipedia-en, wikipedia-fr, wikipedia-es, wikitext2, c4, ptb or file:PATH"
    ):
        text.check_text("wikitext3", host)
    assert {card.name for card in text.texts(host)} >= {"wikipedia-en", "ptb"}


def test_texts_that_are_not_fetched_yet_say_how_to_fetch_them(host: Host) -> None:
    with pytest.raises(UserError, match="make setup"):
        text.evaluation("wikipedia-fr", words(), length=4, windows=1, host=host)


@pytest.mark.parametrize("name", ["wikitext2", "c4", "ptb"])
def test_offline_a_hub_text_names_the_embedded_ones(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*asked: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=rf"text {name} .*\(Couldn't reach the Hub\).*wikipedia-en"):
        text.evaluation(name, words(), length=4, windows=1, host=host)


def test_a_hub_text_is_read_once_and_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_dataset(path: str, name: str, split: str) -> datasets.Dataset:
        asked.append(f"{path} {name} {split}")
        return datasets.Dataset.from_dict({"text": ["w1 w2", "", "w3 w4"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        got = text.evaluation("wikitext2", words(), length=4, windows=1, host=host)
        assert got.ids.tolist() == [[3, 4, 5, 6]]
    assert got.protocol["split"] == "test"
    assert asked == ["Salesforce/wikitext wikitext-2-raw-v1 test"]


def test_one_file_for_both_is_noticed(tmp_path: Path, numbers: str) -> None:
    (tmp_path / "link.txt").symlink_to(numbers[5:])
    assert text.same_text(numbers, f"file:{tmp_path / 'link.txt'}")
    assert not text.same_text(numbers, "file:other.txt")
    assert not text.same_text("wikipedia-en", "wikipedia-en")


GROWTH = """
import resource, sys
from backend import text
from backend.host import Host
from tests.backend.test_text import words
host = Host.from_environment()
small, large = (f"file:{place}" for place in sys.argv[1:])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
text.calibration(small, words(), 4, 64, 0, host)
before = peak()
text.calibration(large, words(), 64, 512, 0, host)
print(peak() - before)
"""


def test_the_memory_of_the_process_does_not_grow_with_the_text(tmp_path: Path) -> None:
    # Six megabytes in one go took 528 MB, most of it in memory that only the process as a whole shows.
    places = []
    for megabytes in (0.3, 6):
        places.append(tmp_path / f"{megabytes}.jsonl")
        row = json.dumps({"text": " ".join(f"w{number % 500}" for number in range(400))}) + "\n"
        places[-1].write_text(row * int(megabytes * 1e6 / len(row)))
    environment = {**os.environ, "PARETOSCOPE_ROOTS": str(tmp_path), "PARETOSCOPE_HOME": str(tmp_path / "h")}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, places)], capture_output=True, text=True, check=True,
        env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) < 100
