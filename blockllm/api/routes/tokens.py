"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blockllm.api import limits
from blockllm.api.answers import DetokenizeAnswer, TokenizeAnswer
from blockllm.api.errors import json_response
from blockllm.api.models import ServedModel
from blockllm.api.serving import Serving, caller_of, chat_ids, maybe_elsewhere
from blockllm.api.wire import DetokenizeRequest, TokenizeRequest
from blockllm.errors import BadRequest


def routes(serving: Serving) -> list[Route]:
    """Both directions."""

    async def tokenize(request: Request) -> Response:
        body = await serving.read(request, TokenizeRequest)
        model, caller = serving.models.find(body.model), caller_of(request)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("prompt: give either prompt or messages", "prompt")
        add_special = body.add_special_tokens
        if body.messages is not None:
            special = bool(add_special)
            ids = await chat_ids(serving, caller, model, body.messages, body, False, special)
        else:
            adds = add_special in (None, True)
            words = body.prompt or "", adds, "prompt", False
            ids = await serving.texts.encode(caller.tenant, model, *words)
        answer = TokenizeAnswer(len(ids), model.max_context, ids)
        if body.return_token_strs:
            answer.token_strs = await maybe_elsewhere(len(ids), partial(_names, model, ids))
        return json_response(answer)

    async def detokenize(request: Request) -> Response:
        body = await serving.read(request, DetokenizeRequest)
        model = serving.models.find(body.model)
        if any(not 0 <= token <= limits.MAX_TOKEN_ID for token in body.tokens):
            raise limits.refuse("tokens", "an id out of range", f"0 to {limits.MAX_TOKEN_ID}")
        tenant = caller_of(request).tenant
        return json_response(
            DetokenizeAnswer(await serving.texts.decode(tenant, model, body.tokens))
        )

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


def _names(model: ServedModel, ids: list[int]) -> list[str]:
    return [model.decoder.token(token) or "" for token in ids]
