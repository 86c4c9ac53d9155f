"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blockllm.api import limits
from blockllm.api.answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
)
from blockllm.api.choice import Piece
from blockllm.api.endpoint import Endpoint
from blockllm.api.errors import json_response
from blockllm.api.logprobs import chat_logprobs
from blockllm.api.serving import Caller, PreparedCall, Serving, caller_of, chat_ids
from blockllm.api.stream import (
    EventStream,
    StreamWrite,
    TextFrames,
    encode_events,
    until_disconnect,
)
from blockllm.api.wire import ChatRequest
from blockllm.errors import BadRequest


def routes(serving: Serving) -> list[Route]:
    """The chat route."""

    async def create(request: Request) -> Response:
        body = await serving.read(request, ChatRequest)
        call = await _prepare(serving, body, caller_of(request))
        if body.stream:
            return EventStream(_events(call), serving.metrics.token_overhead.observe)
        return json_response(await until_disconnect(_answer(call), request.receive))

    return [Route("/v1/chat/completions", Endpoint(create), methods=["POST"])]


async def _prepare(serving: Serving, body: ChatRequest, caller: Caller) -> PreparedCall:
    model = serving.models.find(body.model)
    ids = await chat_ids(serving, caller, model, body.messages, body, has_to_fit=True)
    room = limits.check_prompt(ids, model.max_context, "messages")
    defaults, logprobs = serving.defaults(model), _num_logprobs(body)
    max_tokens = limits.read_max_tokens(body, room, int(defaults.get("max_tokens", room)))
    sampling = limits.read_sampling(body, serving.settings, max_tokens, logprobs, defaults)
    return serving.prepare(body, model, caller, [ids], [sampling])


def _num_logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise BadRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
        return None
    return body.top_logprobs or 0


async def _answer(call: PreparedCall) -> ChatAnswer:
    with call.serving.in_flight(), call.start() as generation:
        collected = await generation.collect()
    return ChatAnswer(
        id=_answer_id(call),
        created=call.created,
        model=call.model.name,
        system_fingerprint=call.model.fingerprint,
        service_tier=call.service_tier,
        choices=[_choice(call, index, pieces) for index, pieces in enumerate(collected)],
        usage=call.usage(),
        prompt_token_ids=list(call.prompts[0]) if call.wants_ids else UNSET,
    )


def _choice(call: PreparedCall, index: int, pieces: Sequence[Piece]) -> ChatChoice:
    last = pieces[-1]
    return ChatChoice(
        index,
        ChatMessage("".join(piece.text for piece in pieces)),
        finish_reason=last.finish_reason or "stop",
        logprobs=chat_logprobs(call.model.decoder, pieces),
        stop_reason=last.stop_reason,
        token_ids=[token for piece in pieces for token in piece.token_ids]
        if call.wants_ids
        else UNSET,
    )


async def _events(call: PreparedCall) -> AsyncGenerator[StreamWrite, None]:
    frames = TextFrames(lambda i: _chunk(call, [_news(call, Piece(i))]), "content")
    opening = encode_events(_opening(call))
    with call.serving.in_flight(), call.start() as generation:
        async for pieces in generation.pieces():
            body = opening + b"".join([_event(call, frames, piece) for piece in pieces])
            opening = b""
            if body:
                yield StreamWrite(body, generation.made)
    if call.include_usage:
        chunk = _chunk(call, [])
        chunk.usage = call.usage()
        yield StreamWrite(encode_events([chunk]))


def _opening(call: PreparedCall) -> list[ChatChunk]:
    """OpenAI's first event of every answer: the role, no text."""
    chunks = [
        _chunk(call, [ChatChunkChoice(choice.index, ChatDelta("assistant", ""))])
        for choice in call.choices
    ]
    if call.wants_ids:
        chunks[0].prompt_token_ids = list(call.prompts[0])
    return chunks


def _event(call: PreparedCall, frames: TextFrames, piece: Piece) -> bytes:
    """One piece as an event, or nothing while its text is held back."""
    if call.has_plain_events(piece):
        return frames.event(piece.index, piece.text)
    return encode_events([_chunk(call, [_news(call, piece)])])


def _news(call: PreparedCall, piece: Piece) -> ChatChunkChoice:
    return ChatChunkChoice(
        piece.index,
        ChatDelta(content=piece.text),
        finish_reason=piece.finish_reason,
        logprobs=chat_logprobs(call.model.decoder, [piece]),
        stop_reason=piece.stop_reason if piece.finish_reason else UNSET,
        token_ids=piece.token_ids if call.wants_ids else UNSET,
    )


def _chunk(call: PreparedCall, choices: list[ChatChunkChoice]) -> ChatChunk:
    chunk = ChatChunk(
        id=_answer_id(call),
        created=call.created,
        model=call.model.name,
        system_fingerprint=call.model.fingerprint,
        service_tier=call.service_tier,
        choices=choices,
    )
    if call.include_usage:
        chunk.usage = call.usage() if call.continuous_usage else None
    return chunk


def _answer_id(call: PreparedCall) -> str:
    return f"chatcmpl-{call.id}"
