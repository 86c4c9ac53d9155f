"""The outermost layer: who may come in, and an OpenAI error object for everything that fails.

Deny by default: a route needs a key unless it is in PUBLIC.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockllm.api.errors import HttpError, error_response
from blockllm.api.keys import KeyRing

PUBLIC = frozenset({"/health", "/ready"})


class Guard:
    """Checks the key, puts the tenant into the scope's state, and answers for any exception."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            scope["app"] = self  # without one Starlette answers unknown routes in plain text
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            await self._app(scope, receive, watch)
        except Exception as error:
            response = _answer(error, scope)
            if started:  # too late for another answer: end the connection
                raise ConnectionAbortedError("the response broke off") from None
            await response(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        if not self._keys or scope["path"] in PUBLIC:
            return ""
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        kind, _, key = header.partition(" ")
        tenant = self._keys.tenant_of(key.strip()) if kind.lower() == "bearer" else None
        if tenant is None:
            raise HttpError(401, "no valid API key: send `Authorization: Bearer KEY`", KEY_CODE)
        return tenant


def _answer(error: Exception, scope: Scope) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    if not isinstance(error, HTTPException):
        return error_response(error)
    message = f"{scope['method']} {scope['path']}: {error.detail}"
    response = error_response(HttpError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


KEY_CODE = "invalid_api_key"
CLIENT_GONE = 499  # nobody reads it; for access logs
