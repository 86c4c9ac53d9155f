"""Log-probabilities: which tokens they name, and where in the text each token stands."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockllm.api.choice import Choice, Piece, TextRules
from blockllm.api.logprobs import chat_logprobs, completion_logprobs
from blockllm.api.tokenizer import TextTokenizer
from blockllm.core import Finish, Request, Sampling, TokenEvent, TokenLogprobs
from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer
from tests.api.serving import RunningServer

TOKENIZERS = {
    "byte-level": TextTokenizer(byte_level_tokenizer()),
    "sentencepiece": TextTokenizer(sentencepiece_like_tokenizer()),
}
TEXT = "the 👩‍👩‍👧 naïve 日本 fox"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def pieces_of(
    tokenizer: TextTokenizer, ids: list[int], rules: TextRules | None = None
) -> list[Piece]:
    """One piece per token, as a slow stream has them."""
    choice = Choice(0, Request("r", "m", (1,), Sampling()), tokenizer, rules or TextRules())
    pieces = []
    for index, token in enumerate(ids):
        last = Finish.LENGTH if index == len(ids) - 1 else None
        pieces.append(Piece(0))
        event = TokenEvent("r", token, TokenLogprobs(-1.0, ((token, -1.0),)), last)
        if choice.feed(event, pieces[-1]):
            break
    return pieces


def texts_of(pieces: list[Piece], offsets: list[int]) -> dict[int, str]:
    """The text that each offset's tokens stand for, up to the next offset."""
    text = "".join(piece.text for piece in pieces)
    ends = sorted({*offsets, len(text)})
    return {begin: text[begin:end] for begin, end in pairwise(ends)}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS)
@example(text=TEXT)
def test_offsets_index_the_text(kind: str, text: str):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, False)
    pieces = pieces_of(tokenizer, ids)
    logprobs = completion_logprobs(tokenizer, pieces)
    assert logprobs is not None
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for begin, part in texts_of(pieces, logprobs.text_offset).items():
        tokens = zip(ids, logprobs.text_offset, strict=True)
        data = b"".join(tokenizer.token_bytes(token) for token, at in tokens if at == begin)
        assert data.decode(errors="replace").lstrip(" ") == part.lstrip(" ")


def test_the_parts_of_one_character_have_one_offset():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a€b😀c", False)
    logprobs = completion_logprobs(tokenizer, pieces_of(tokenizer, ids))
    assert logprobs is not None
    assert logprobs.text_offset == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def test_tokens_that_are_not_shown_take_no_room():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [0, *tokenizer.encode("The", False), 1, *tokenizer.encode(" fox", False)]
    pieces = pieces_of(tokenizer, ids)
    assert [at for piece in pieces for at in piece.offsets] == [0, 0, 3, 3]
    shown = pieces_of(tokenizer, ids, TextRules(skip_special=False))
    assert [at for piece in shown for at in piece.offsets] == [0, 3, 6, 10]


def test_offsets_are_the_same_in_one_piece_and_while_a_stop_string_is_held_back():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("The 😀 quick fox", False)
    pieces = pieces_of(tokenizer, ids)
    expected = [at for piece in pieces for at in piece.offsets]
    held = pieces_of(tokenizer, ids, TextRules(["😀 quick dog"]))
    assert [at for piece in held for at in piece.offsets] == expected
    assert "".join(piece.text for piece in held) == "The 😀 quick fox"


@pytest.mark.parametrize("stop", ["😀", "😀 q", "é😀", "日"])
def test_stop_strings_of_characters_of_several_tokens(stop: str):
    tokenizer = TOKENIZERS["byte-level"]
    for before in ("", "naïve "):
        ids = tokenizer.encode(f"{before}{stop}uick", False)
        pieces = pieces_of(tokenizer, ids, TextRules([stop]))
        assert "".join(piece.text for piece in pieces) == before
        assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", stop)


def piece_with(token: int, *top: tuple[int, float], chosen: float = -3.0) -> Piece:
    return Piece(0, "", [token], [TokenLogprobs(chosen, top)], [0])


def test_the_chosen_token_is_named_beside_the_most_likely_ones():
    tokenizer = TOKENIZERS["byte-level"]
    the, quick = tokenizer.encode("The quick", False)
    for top, named in (
        ([(quick, -0.5)], {" quick": -0.5, "The": -3.0}),
        ([(quick, -0.5), (the, -3.0)], {" quick": -0.5, "The": -3.0}),
        ([], {"The": -3.0}),
    ):
        logprobs = completion_logprobs(tokenizer, [piece_with(the, *top)])
        assert logprobs is not None and logprobs.top_logprobs == [named]
        chat = chat_logprobs(tokenizer, [piece_with(the, *top)])
        assert chat is not None and len(chat.content[0].top_logprobs) == len(top)


def test_parts_of_characters_are_named_by_their_bytes():
    tokenizer = TOKENIZERS["byte-level"]
    first = tokenizer.encode("€", False)[0]
    (token,) = tokenizer.encode("a", False)
    completion = completion_logprobs(tokenizer, [piece_with(first, (token, -0.5))])
    assert completion is not None
    assert completion.tokens == ["bytes:\\xe2"]
    assert completion.top_logprobs == [{"a": -0.5, "bytes:\\xe2": -3.0}]
    chat = chat_logprobs(tokenizer, [piece_with(first, (first, -3.0))])
    assert chat is not None
    (entry,) = chat.content
    assert (entry.token, entry.bytes) == ("\\xe2", [0xE2])
    assert (entry.top_logprobs[0].token, entry.top_logprobs[0].bytes) == ("\\xe2", [0xE2])


def test_bytes_of_all_tokens_are_the_text():
    tokenizer = TOKENIZERS["byte-level"]
    pieces = pieces_of(tokenizer, tokenizer.encode(TEXT, False))
    chat = chat_logprobs(tokenizer, pieces)
    assert chat is not None
    assert bytes(byte for entry in chat.content for byte in entry.bytes).decode() == TEXT


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_ids_of_prompt_and_answer_in_all_four_shapes(
    server: RunningServer, path: str, stream: bool
):
    body = {"model": "base", "max_tokens": 3, "return_token_ids": True, "stream": stream, "n": 2}
    prompts = 1
    if path == "/v1/completions":
        body["prompt"] = [[5, 6, 7, 8], [9, 10]]
        expected, prompts = [[5, 6, 7, 8]] * 2 + [[9, 10]] * 2, 2
    else:
        body["messages"] = [{"role": "user", "content": "The fox"}]
        asked = {"model": "base", "messages": body["messages"]}
        expected = [server.post("/tokenize", asked).json()["tokens"]] * 2
    response = server.post(path, body)
    events = response.text.split("\n\n")[:-2] if stream else [response.text]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    ids: list[list[int]] = [[] for _ in range(2 * prompts)]
    seen: dict[int, list[int]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            ids[choice["index"]] += choice.get("token_ids", [])
            prompt = choice.get("prompt_token_ids", chunk.get("prompt_token_ids"))
            if prompt is not None:
                seen.setdefault(choice["index"], prompt)
    assert ids == [(prompt * 3)[:3] for prompt in expected]
    whole_chat = range(1) if path.endswith("chat/completions") else range(len(expected))
    assert all(seen[index] == expected[index] for index in whole_chat)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_ids_are_sent_only_when_asked_for(server: RunningServer, path: str):
    body = {"model": "base", "max_tokens": 3}
    body |= {"prompt": [5, 6]} if "chat" not in path else {"messages": [{"role": "user"}]}
    for wanted in ({}, {"return_token_ids": None}, {"return_token_ids": False}):
        assert "token_ids" not in server.post(path, {**body, **wanted}).text
