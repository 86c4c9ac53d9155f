"""GET /v1/models, /v1/models/{id} and /openapi.json."""

from __future__ import annotations

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blockllm.api import openapi
from blockllm.api.answers import ModelEntry, ModelList
from blockllm.api.errors import json_response
from blockllm.api.models import ServedModel
from blockllm.api.serving import Serving


def routes(serving: Serving) -> list[Route]:
    """The listing and its entries, and the description of all routes."""
    described = msgspec.json.encode(openapi.document(serving.settings))

    async def everything(request: Request) -> Response:
        return json_response(ModelList([_entry(serving, model) for model in serving.models]))

    async def one(request: Request) -> Response:
        if not request.path_params["name"]:  # a slash behind the listing's path
            return await everything(request)
        return json_response(_entry(serving, serving.models.find(request.path_params["name"])))

    async def description(request: Request) -> Response:
        return Response(described, media_type="application/json")

    return [
        Route("/openapi.json", description, methods=["GET"]),
        Route("/v1/models", everything, methods=["GET"]),
        Route("/v1/models/{name:path}", one, methods=["GET"]),
    ]


def _entry(serving: Serving, model: ServedModel) -> ModelEntry:
    card = model.card
    return ModelEntry(
        id=card.name,
        created=int(card.created),
        root=card.parent or card.name,  # never the folder that the weights came from
        parent=card.parent,
        kind=card.kind,
        family=card.family,
        max_model_len=model.max_context,
        total_bytes=card.total_bytes,
        own_bytes=card.own_bytes,
        shared_bytes=card.shared_bytes,
        num_blocks=card.num_blocks,
        num_shared_blocks=card.num_shared_blocks,
        has_chat_template=model.has_template,
        format=card.format,
        exact=card.exact,
        loss=card.loss,
        switched_off=serving.texts.off(model) or UNSET,
    )
