"""Log-probabilities in the two formats OpenAI has."""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.api.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from blockllm.api.choice import Piece
from blockllm.api.tokenizer import TextTokenizer

LOWEST = -9999.0  # JSON has no infinity; OpenAI writes this for "hardly ever"


def chat_logprobs(tokenizer: TextTokenizer, pieces: Sequence[Piece]) -> ChatLogprobs | None:
    """None when they were not asked for."""
    content = [
        _chat_token(tokenizer, token, logprobs.chosen, logprobs.top)
        for piece in pieces
        for token, logprobs in zip(piece.token_ids, piece.logprobs, strict=False)
    ]
    return ChatLogprobs(content) if content else None


def completion_logprobs(
    tokenizer: TextTokenizer, pieces: Sequence[Piece], offset: int
) -> CompletionLogprobs | None:
    """None when they were not asked for. `offset` is where the first token begins in the text."""
    answer = CompletionLogprobs([], [], [], [])
    tops: list[dict[str, float]] = []
    for piece in pieces:
        for token, logprobs in zip(piece.token_ids, piece.logprobs, strict=False):
            name = _name(tokenizer, token)
            answer.tokens.append(name)
            answer.token_logprobs.append(_finite(logprobs.chosen))
            tops.append({_name(tokenizer, other): _finite(value) for other, value in logprobs.top})
            answer.text_offset.append(offset)
            offset += len(_text(tokenizer.token_bytes(token)))
    answer.top_logprobs = tops if any(tops) else None
    return answer if answer.tokens else None


def num_characters(tokenizer: TextTokenizer, piece: Piece) -> int:
    """By how much this piece's tokens move the offset of the next."""
    return sum(len(_text(tokenizer.token_bytes(token))) for token in piece.token_ids)


def _chat_token(
    tokenizer: TextTokenizer, token: int, chosen: float, top: Sequence[tuple[int, float]]
) -> TokenLogprob:
    rivals = []
    for other, value in top:
        data = tokenizer.token_bytes(other)
        rivals.append(TopLogprob(_text(data), _finite(value), list(data)))
    data = tokenizer.token_bytes(token)
    return TokenLogprob(_text(data), _finite(chosen), list(data), rivals)


def _name(tokenizer: TextTokenizer, token: int) -> str:
    """Text of a token, unique also for those that are no whole characters."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _finite(value: float) -> float:
    return max(value, LOWEST)
