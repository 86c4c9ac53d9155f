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
from blockllm.api.serving import Caller, Plan, Serving, caller_of, chat_ids
from blockllm.api.stream import Departure, EventStream, TextFrames, encode_events, until_disconnect
from blockllm.api.wire import ChatRequest
from blockllm.errors import BadRequest


def routes(serving: Serving) -> list[Route]:
    """The chat route."""

    async def create(request: Request) -> Response:
        body = await serving.read(request, ChatRequest)
        plan = await _plan(serving, body, caller_of(request))
        if body.stream:
            return EventStream(_events(plan), serving.metrics.token_overhead.observe)
        return json_response(await until_disconnect(_answer(plan), request.receive))

    return [Route("/v1/chat/completions", Endpoint(create), methods=["POST"])]


async def _plan(serving: Serving, body: ChatRequest, caller: Caller) -> Plan:
    model = serving.models.find(body.model)
    ids = await chat_ids(serving, caller, model, body.messages, body, has_to_fit=True)
    room = limits.check_prompt(ids, model.max_context, "messages")
    defaults, logprobs = serving.defaults(model), _num_logprobs(body)
    max_tokens = limits.read_max_tokens(body, room, int(defaults.get("max_tokens", room)))
    sampling = limits.read_sampling(body, serving.settings, max_tokens, logprobs, defaults)
    return serving.plan(body, model, caller, [ids], [sampling])


def _num_logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise BadRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
        return None
    return body.top_logprobs or 0


async def _answer(plan: Plan) -> ChatAnswer:
    with plan.serving.in_flight(), plan.start() as generation:
        collected = await generation.collect()
    return ChatAnswer(
        id=_answer_id(plan),
        created=plan.created,
        model=plan.model.name,
        system_fingerprint=plan.model.fingerprint,
        choices=[_choice(plan, index, pieces) for index, pieces in enumerate(collected)],
        usage=plan.usage(),
        prompt_token_ids=list(plan.prompts[0]) if plan.wants_ids else UNSET,
    )


def _choice(plan: Plan, index: int, pieces: Sequence[Piece]) -> ChatChoice:
    last = pieces[-1]
    return ChatChoice(
        index,
        ChatMessage("".join(piece.text for piece in pieces)),
        finish_reason=last.finish_reason or "stop",
        logprobs=chat_logprobs(plan.model.decoder, pieces),
        stop_reason=last.stop_reason,
        token_ids=[token for piece in pieces for token in piece.token_ids]
        if plan.wants_ids
        else UNSET,
    )


async def _events(plan: Plan) -> AsyncGenerator[Departure, None]:
    frames = TextFrames(lambda i: _chunk(plan, [_news(plan, Piece(i))]), "content")
    opening = encode_events(_opening(plan))
    with plan.serving.in_flight(), plan.start() as generation:
        async for pieces in generation.pieces():
            body = opening + b"".join([_event(plan, frames, piece) for piece in pieces])
            opening = b""
            if body:
                yield Departure(body, generation.made)
    if plan.include_usage:
        chunk = _chunk(plan, [])
        chunk.usage = plan.usage()
        yield Departure(encode_events([chunk]))


def _opening(plan: Plan) -> list[ChatChunk]:
    """OpenAI's first event of every answer: the role, no text."""
    chunks = [
        _chunk(plan, [ChatChunkChoice(choice.index, ChatDelta("assistant", ""))])
        for choice in plan.choices
    ]
    if plan.wants_ids:
        chunks[0].prompt_token_ids = list(plan.prompts[0])
    return chunks


def _event(plan: Plan, frames: TextFrames, piece: Piece) -> bytes:
    """One piece as an event, or nothing while its text is held back."""
    if plan.has_plain_events(piece):
        return frames.event(piece.index, piece.text)
    return encode_events([_chunk(plan, [_news(plan, piece)])])


def _news(plan: Plan, piece: Piece) -> ChatChunkChoice:
    return ChatChunkChoice(
        piece.index,
        ChatDelta(content=piece.text),
        finish_reason=piece.finish_reason,
        logprobs=chat_logprobs(plan.model.decoder, [piece]),
        stop_reason=piece.stop_reason if piece.finish_reason else UNSET,
        token_ids=piece.token_ids if plan.wants_ids else UNSET,
    )


def _chunk(plan: Plan, choices: list[ChatChunkChoice]) -> ChatChunk:
    chunk = ChatChunk(
        id=_answer_id(plan),
        created=plan.created,
        model=plan.model.name,
        system_fingerprint=plan.model.fingerprint,
        choices=choices,
    )
    if plan.include_usage:
        chunk.usage = plan.usage() if plan.continuous_usage else None
    return chunk


def _answer_id(plan: Plan) -> str:
    return f"chatcmpl-{plan.id}"
