"""The ASGI application: guard → routes."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from blockllm.api.errors import HttpError, error_response
from blockllm.api.guard import Guard
from blockllm.api.keys import KeyRing
from blockllm.api.routes import chat, completions, health, listing, tokens
from blockllm.api.serving import Serving
from blockllm.errors import BlockllmError

CLIENT_GONE = 499  # nobody reads it; for access logs


def all_routes(serving: Serving) -> list[Route]:
    """Every route of the server."""
    groups = (chat, completions, listing, tokens, health)
    return [route for group in groups for route in group.routes(serving)]


def make_app(serving: Serving, keys: KeyRing) -> ASGIApp:
    """The whole application."""
    router = Router(all_routes(serving), redirect_slashes=False)
    answering = ExceptionMiddleware(
        router,
        handlers={
            HTTPException: _on_http_exception,
            BlockllmError: _on_error,
            ClientDisconnect: _on_disconnect,
        },
    )
    return Guard(answering, keys)


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    response = error_response(HttpError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response
