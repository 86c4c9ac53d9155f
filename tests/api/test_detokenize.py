from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from blockllm.api.detokenize import WindowDetokenizer, make_detokenizer
from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import BadRequest
from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer

BYTE_LEVEL = TextTokenizer(byte_level_tokenizer())
SENTENCEPIECE = TextTokenizer(sentencepiece_like_tokenizer())
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def stream(tokenizer: TextTokenizer, ids: list[int], prompt: list[int], skip: bool = True) -> str:
    detokenizer = make_detokenizer(tokenizer, prompt, skip)
    return "".join([*(detokenizer.feed(token) for token in ids), detokenizer.flush()])


@given(st.lists(st.integers(0, 410), max_size=60), st.booleans())
def test_byte_level_stream_equals_decoding_at_once(ids: list[int], skip: bool):
    assert stream(BYTE_LEVEL, ids, [], skip) == BYTE_LEVEL.decode(ids, skip)


@given(TEXTS)
@example("naïve € 😀👩‍👩‍👧")
def test_text_survives_a_byte_level_tokenizer(text: str):
    assert stream(BYTE_LEVEL, BYTE_LEVEL.encode(text, False), []) == text


@given(TEXTS)
@example("the € 😀 thin  the")
def test_text_survives_a_sentencepiece_tokenizer(text: str):
    ids = SENTENCEPIECE.encode(text, False)
    assert stream(SENTENCEPIECE, ids, []) == SENTENCEPIECE.decode(ids, True)


@given(TEXTS, TEXTS)
def test_sentencepiece_continues_a_prompt_with_its_space(prompt: str, text: str):
    ids = SENTENCEPIECE.encode("a" + prompt + "a" + text, False)
    cut = len(SENTENCEPIECE.encode("a" + prompt + "a", False))
    if SENTENCEPIECE.decode(ids[:cut], True) + "" != "a" + prompt + "a":
        return  # a merge over the border
    whole = SENTENCEPIECE.decode(ids, True)
    assert stream(SENTENCEPIECE, ids[cut:], ids[:cut]) == whole[len(prompt) + 2 :]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 360), max_size=40))
def test_any_ids_stream_without_error(ids: list[int]):
    stream(SENTENCEPIECE, ids, [])


def test_incomplete_characters_are_held_back():
    ids = BYTE_LEVEL.encode("€", False)
    assert len(ids) == 3
    detokenizer = make_detokenizer(BYTE_LEVEL, [], True)
    assert [detokenizer.feed(token) for token in ids] == ["", "", "€"]
    detokenizer.feed(ids[0])
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_show_only_when_asked_for():
    assert stream(BYTE_LEVEL, [0, 1], []) == ""
    assert stream(BYTE_LEVEL, [0, 1], [], skip=False) == "<s></s>"


def test_the_window_does_not_grow_with_tokens_that_have_no_text():
    detokenizer = WindowDetokenizer(SENTENCEPIECE, [], True)
    started = time.perf_counter()
    for _ in range(20_000):
        detokenizer.feed(1_000_000)
    assert len(detokenizer._window) < 40
    assert time.perf_counter() - started < 5


class CountingTokenizer(TextTokenizer):
    """Counts the tokens and characters that decoding touches."""

    num_tokens = num_characters = 0

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text = super().decode(ids, skip_special)
        self.num_tokens += len(ids)
        self.num_characters += len(text)
        return text


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_like_tokenizer()])
def test_work_is_linear_in_the_length_of_the_output(tokenizer: Tokenizer):
    def work(num_tokens: int) -> tuple[int, int]:
        counting = CountingTokenizer(tokenizer)
        ids = counting.encode("the quick brown fox € " * num_tokens, False)[:num_tokens]
        assert len(ids) == num_tokens
        stream(counting, ids, [])
        return counting.num_tokens, counting.num_characters

    (few_tokens, few_characters), (tokens, characters) = work(1_000), work(8_000)
    assert tokens <= 8 * few_tokens + 100
    assert characters <= 8 * few_characters + 100
    assert tokens <= 40 * 8_000


def test_bytes_of_tokens():
    assert b"".join(map(BYTE_LEVEL.token_bytes, BYTE_LEVEL.encode("a €", False))) == "a €".encode()
    ids = SENTENCEPIECE.encode("the €", False)
    assert b"".join(map(SENTENCEPIECE.token_bytes, ids)) == " the €".encode()
    assert BYTE_LEVEL.token_bytes(1_000_000) == b""


def test_a_decoder_that_panics_is_a_fault_of_the_model():
    tokenizer = Tokenizer(models.BPE({" ": 0, "<0xZZ>": 1}, []))
    tokenizer.decoder = decoders.Strip(" ", 0, 5)  # of a token that has fewer of them
    with pytest.raises(BadRequest, match="cannot make text") as caught:
        TextTokenizer(tokenizer).decode([0], False)
    assert caught.value.param == "model"
    assert TextTokenizer(tokenizer).token_bytes(1) == b"<0xZZ>"
