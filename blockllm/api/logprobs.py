"""Log-probabilities in the two formats OpenAI has."""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.api.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from blockllm.api.choice import Piece
from blockllm.api.tokenizer import TokenTable
from blockllm.core import TokenLogprobs

LOWEST = -9999.0  # JSON has no infinity; OpenAI writes this for "hardly ever"


def chat_logprobs(tokenizer: TokenTable, pieces: Sequence[Piece]) -> ChatLogprobs | None:
    """None when they were not asked for."""
    content = [
        _chat_token(tokenizer, token, logprobs.chosen, logprobs.top)
        for piece in pieces
        for token, logprobs in zip(piece.token_ids, piece.logprobs, strict=False)
    ]
    return ChatLogprobs(content) if content else None


def completion_logprobs(
    tokenizer: TokenTable, pieces: Sequence[Piece]
) -> CompletionLogprobs | None:
    """None when they were not asked for."""
    answer = CompletionLogprobs([], [], [], [])
    for piece in pieces:
        tokens = zip(piece.token_ids, piece.logprobs, piece.offsets, strict=False)
        for token, logprobs, offset in tokens:
            answer.tokens.append(_name(tokenizer, token))
            answer.token_logprobs.append(_finite(logprobs.chosen))
            answer.top_logprobs.append(_candidates(tokenizer, token, logprobs))
            answer.text_offset.append(offset)
    return answer if answer.tokens else None


def _candidates(tokenizer: TokenTable, token: int, logprobs: TokenLogprobs) -> dict[str, float]:
    """The most likely tokens by name, and the chosen one when it is not among them."""
    named: dict[str, float] = {}
    for other, value in (*logprobs.top, (token, logprobs.chosen)):
        named.setdefault(_name(tokenizer, other), _finite(value))
    return named


def _chat_token(
    tokenizer: TokenTable, token: int, chosen: float, top: Sequence[tuple[int, float]]
) -> TokenLogprob:
    rivals = []
    for other, value in top:
        data = tokenizer.token_bytes(other)
        rivals.append(TopLogprob(_text(data), _finite(value), list(data)))
    data = tokenizer.token_bytes(token)
    return TokenLogprob(_text(data), _finite(chosen), list(data), rivals)


def _name(tokenizer: TokenTable, token: int) -> str:
    """Text of a token; that of one which is no whole characters cannot be mistaken for another."""
    text = tokenizer.token_text(token)
    return "bytes:" + _escaped(tokenizer.token_bytes(token)) if text is None else text


def _text(data: bytes) -> str:
    """Text of a token in the chat format, whose `bytes` field has the bytes beside it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _escaped(data)


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def _finite(value: float) -> float:
    return max(value, LOWEST)
