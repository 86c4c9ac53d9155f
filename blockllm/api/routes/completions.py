"""POST /v1/completions: text, several texts, ids, or several lists of ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blockllm.api import limits
from blockllm.api.answers import CompletionAnswer, CompletionChoice
from blockllm.api.choice import Piece
from blockllm.api.endpoint import Endpoint
from blockllm.api.errors import json_response
from blockllm.api.logprobs import completion_logprobs
from blockllm.api.models import ServedModel
from blockllm.api.serving import Caller, PreparedCall, Serving, caller_of
from blockllm.api.stream import (
    EventStream,
    StreamWrite,
    TextFrames,
    encode_events,
    until_disconnect,
)
from blockllm.api.wire import CompletionRequest
from blockllm.errors import BadRequest

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def routes(serving: Serving) -> list[Route]:
    """The completion route."""

    async def create(request: Request) -> Response:
        body = await serving.read(request, CompletionRequest)
        call = await _prepare(serving, body, caller_of(request))
        if body.stream:
            return EventStream(_events(call), serving.metrics.token_overhead.observe)
        return json_response(await until_disconnect(_answer(call), request.receive))

    return [Route("/v1/completions", Endpoint(create), methods=["POST"])]


async def _prepare(serving: Serving, body: CompletionRequest, caller: Caller) -> PreparedCall:
    model = serving.models.find(body.model)
    prompts = await _read_prompts(serving, caller, model, body)
    settings, defaults = serving.settings, serving.defaults(model)
    default = min(int(defaults.get("max_tokens", DEFAULT_MAX_TOKENS)), DEFAULT_MAX_TOKENS)
    samplings = []
    for ids in prompts:
        room = limits.check_prompt(ids, model.max_context, "prompt")
        max_tokens = limits.read_max_tokens(body, room, default)
        samplings.append(limits.read_sampling(body, settings, max_tokens, body.logprobs, defaults))
    return serving.prepare(body, model, caller, prompts, samplings)


async def _read_prompts(
    serving: Serving, caller: Caller, model: ServedModel, body: CompletionRequest
) -> list[list[int]]:
    async def encode(text: str) -> list[int]:
        words = text, body.add_special_tokens, "prompt", True
        return await serving.texts.encode(caller.tenant, model, *words)

    prompt = body.prompt
    if isinstance(prompt, str):
        return [await encode(prompt)]
    if prompt and all(isinstance(element, int) for element in prompt):
        return [[element for element in prompt if isinstance(element, int)]]
    limits.check_count("prompt", len(prompt), serving.settings.max_prompts, least=1)
    prompts = []
    for element in prompt:
        if isinstance(element, int):
            raise BadRequest("prompt: ids cannot stand beside texts or lists", "prompt")
        if isinstance(element, str):
            element = await encode(element)
        prompts.append(element)
    return prompts


async def _answer(call: PreparedCall) -> CompletionAnswer:
    with call.serving.in_flight(), call.start() as generation:
        collected = await generation.collect()
    answer = _chunk(call, [_choice(call, index, each) for index, each in enumerate(collected)])
    for choice in answer.choices if call.wants_ids else ():
        choice.prompt_token_ids = _prompt_of(call, choice.index)
    answer.usage = call.usage()
    return answer


def _choice(call: PreparedCall, index: int, pieces: Sequence[Piece]) -> CompletionChoice:
    last = pieces[-1]
    choice = CompletionChoice(
        index,
        "".join(piece.text for piece in pieces),
        finish_reason=last.finish_reason,
        logprobs=completion_logprobs(call.model.decoder, pieces),
        stop_reason=last.stop_reason if last.finish_reason else UNSET,
    )
    if call.wants_ids:
        choice.token_ids = [token for piece in pieces for token in piece.token_ids]
    return choice


async def _events(call: PreparedCall) -> AsyncGenerator[StreamWrite, None]:
    stream = _Stream(call)
    with call.serving.in_flight(), call.start() as generation:
        async for pieces in generation.pieces():
            body = b"".join(map(stream.event, pieces))
            if body:
                yield StreamWrite(body, generation.made)
    if call.include_usage:
        chunk = _chunk(call, [])
        chunk.usage = call.usage()
        yield StreamWrite(encode_events([chunk]))


class _Stream:
    """Remembers of each choice whether its prompt was sent."""

    def __init__(self, call: PreparedCall) -> None:
        self._call = call
        self._untold = set(range(len(call.choices))) if call.wants_ids else set()
        self._frames = TextFrames(lambda i: _chunk(call, [_choice(call, i, [Piece(i)])]), "text")

    def event(self, piece: Piece) -> bytes:
        """One piece as an event, or nothing while its text is held back."""
        if self._call.has_plain_events(piece):
            return self._frames.event(piece.index, piece.text)
        return encode_events([_chunk(self._call, [self._news(piece)])])

    def _news(self, piece: Piece) -> CompletionChoice:
        choice = _choice(self._call, piece.index, [piece])
        if piece.index in self._untold:
            self._untold.remove(piece.index)
            choice.prompt_token_ids = _prompt_of(self._call, piece.index)
        return choice


def _prompt_of(call: PreparedCall, index: int) -> list[int]:
    return list(call.prompts[index // call.n])


def _chunk(call: PreparedCall, choices: list[CompletionChoice]) -> CompletionAnswer:
    chunk = CompletionAnswer(
        id=f"cmpl-{call.id}",
        created=call.created,
        model=call.model.name,
        system_fingerprint=call.model.fingerprint,
        service_tier=call.service_tier,
        choices=choices,
    )
    if call.body.stream and call.include_usage:
        chunk.usage = call.usage() if call.continuous_usage else None
    return chunk
