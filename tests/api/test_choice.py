from __future__ import annotations

import pytest

from blockllm.api.choice import Choice, Piece, TextRules
from blockllm.api.tokenizer import TextTokenizer
from blockllm.core import Finish, Request, Sampling, TokenEvent
from blockllm.errors import EngineError


def run(
    tokenizer: TextTokenizer,
    text: str,
    rules: TextRules,
    last: Finish | None = Finish.LENGTH,
    **sampling: object,
) -> tuple[Choice, Piece]:
    ids = tokenizer.encode(text, False)
    request = Request("r", "m", (1,), Sampling(**sampling))  # type: ignore[arg-type]
    choice = Choice(0, request, tokenizer, rules)
    piece = Piece(0)
    for index, token in enumerate(ids):
        finish = last if index == len(ids) - 1 else None
        if choice.feed(TokenEvent("r", token, finish=finish), piece):
            break
    return choice, piece


def test_a_stop_string_over_token_borders_cuts_the_text(byte_level: TextTokenizer):
    choice, piece = run(byte_level, "The quick brown fox", TextRules(["k br"]))
    assert piece.text == "The quic"
    assert (piece.finish_reason, piece.stop_reason) == ("stop", "k br")
    assert choice.finished and not choice.engine_finished
    assert byte_level.decode(piece.token_ids, True) == "The quick brown"


def test_the_stop_string_can_be_kept(byte_level: TextTokenizer):
    _, piece = run(byte_level, "The quick brown fox", TextRules(["k br"], include_stop=True))
    assert piece.text == "The quick br"


def test_a_partial_stop_string_is_shown_in_the_end(byte_level: TextTokenizer):
    _, piece = run(byte_level, "The quick", TextRules(["quick brown"]))
    assert (piece.text, piece.finish_reason) == ("The quick", "length")


def test_stop_strings_are_not_looked_for_before_min_tokens(byte_level: TextTokenizer):
    _, piece = run(byte_level, "The The The", TextRules(["The"]), min_tokens=3, max_tokens=9)
    assert piece.text == "The The "


def test_the_stopping_token_is_counted_but_not_shown(byte_level: TextTokenizer):
    choice, piece = run(byte_level, "The quick", TextRules(), last=Finish.STOP)
    assert (piece.text, choice.num_tokens) == ("The", 2)
    assert (piece.finish_reason, piece.stop_reason) == ("stop", None)
    quick = byte_level.encode(" quick", False)[0]
    _, piece = run(byte_level, "The quick", TextRules(), last=Finish.STOP, stop_ids=(quick,))
    assert piece.stop_reason == quick
    _, piece = run(byte_level, "The quick", TextRules(include_stop=True), last=Finish.STOP)
    assert piece.text == "The quick"


def test_an_unfinished_character_becomes_a_replacement_sign(byte_level: TextTokenizer):
    request = Request("r", "m", (1,))
    choice = Choice(0, request, byte_level, TextRules())
    piece = Piece(0)
    token = byte_level.encode("€", False)[0]
    assert choice.feed(TokenEvent("r", token, finish=Finish.LENGTH), piece)
    assert piece.text == "\ufffd"


def test_an_end_without_a_token(byte_level: TextTokenizer):
    choice = Choice(0, Request("r", "m", (1,)), byte_level, TextRules())
    piece = Piece(0)
    assert choice.feed(TokenEvent("r", finish=Finish.ABORT), piece)
    assert (piece.finish_reason, piece.token_ids) == ("abort", [])


def test_an_error_event_raises(byte_level: TextTokenizer):
    choice = Choice(0, Request("r", "m", (1,)), byte_level, TextRules())
    with pytest.raises(EngineError, match="broken"):
        choice.feed(TokenEvent("r", finish=Finish.ERROR, error="broken"), Piece(0))
    assert choice.engine_finished
