"""A text that is tokenized in pieces has the tokens of the whole, whatever the tokenizer is like."""

import random
import re
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from backend.tokenizing import token_ids


def prose(words: int = 4000) -> str:
    """Words of made-up syllables with numbers, marks, blank lines and letters of several scripts."""
    draw = random.Random(0)
    syllables = ["ta", "ko", "mi", "ren", "ös", "né", "日", "本", "🙂", "sch", "x", "Q"]
    parts = []
    for _ in range(words):
        word = "".join(draw.choices(syllables, k=draw.randint(1, 5)))
        parts.append(draw.choice([word, word.upper(), str(draw.randint(0, 10**6))]))
        parts.append(draw.choice([" ", " ", " ", ", ", "  ", "\n", "\n\n\n", "\t", " (", ".\n"]))
    return "".join(parts)


TEXT = prose()


def byte_level() -> Tokenizer:
    """As GPT-2's, with whitespace that a split leaves to the next word."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    return made


def whole_text() -> Tokenizer:
    """As Llama 2's: no split into words at all, and a mark in front of the text."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>"])
    made.train_from_iterator(re.findall(r"\s?\S+", TEXT), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram() -> Tokenizer:
    """As T5's, with an end of its own."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator([TEXT], trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return made


def word_piece() -> Tokenizer:
    """As BERT's: letters are changed first."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"]))
    return made


MADE: list[Callable[[], Tokenizer]] = [byte_level, whole_text, unigram, word_piece]


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("read", "size"), [(700, 1000), (100, 3000), (10**6, 2048)])
def test_pieces_have_the_tokens_of_the_whole(make, read, size):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    whole = tokenizer(TEXT)["input_ids"]
    found = np.concatenate(list(token_ids(tokenizer, pieces(TEXT, read), size)))
    assert len(whole) > 5 * size / 4
    assert found.tolist() == whole


def test_a_text_without_any_break_is_read_whole():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    for text in ("a" * 9000, "", "x", "\n" * 5000):
        found = np.concatenate(list(token_ids(tokenizer, pieces(text, 512), 1000)))
        assert found.tolist() == tokenizer(text)["input_ids"]


def test_a_tokenizer_that_tells_no_places_reads_all_at_once():
    class Slow:
        is_fast = False

        def __call__(self, text, **settings):
            return {"input_ids": [ord(letter) for letter in text]}

    assert np.concatenate(list(token_ids(Slow(), pieces("abc", 2)))).tolist() == [97, 98, 99]


def test_memory_does_not_grow_with_the_text():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())

    def peak(times: int) -> int:
        tracemalloc.start()
        count = sum(len(ids) for ids in token_ids(tokenizer, (TEXT for _ in range(times)), 20_000))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count > 5000 * times
        return found

    assert peak(16) < 1.2 * peak(4)
