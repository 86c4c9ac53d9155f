"""The outermost layer: checks keys, and answers all that fails with OpenAI's error object.

Deny by default: a route needs a key unless it is in PUBLIC.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockllm.api.errors import HttpError, error_response
from blockllm.api.keys import KeyRing
from blockllm.observability.counts import Totals

PUBLIC = frozenset({"/health", "/ready"})


class Guard:
    """Checks the key, puts the tenant into the scope's state, and answers for any exception.

    `served` are the routes, as `GET /health`; `refused` counts answers with an error status.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, served: Sequence[str], refused: Totals) -> None:
        self._app = app
        self._keys = keys
        self._served = served
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            if not started:
                started = True
                if message["status"] >= 400 and scope["path"] not in PUBLIC:
                    self._refused.add(str(message["status"]))
            await send(message)

        try:
            scope["app"] = self  # without one Starlette answers unknown routes in plain text
            if scope["method"] == "OPTIONS":  # before the key: browsers ask without one
                raise HttpError(405, NO_CROSS_ORIGIN)
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            await self._app(scope, receive, watch)
        except Exception as error:
            response = self._answer(error, scope)
            if started:  # too late for another answer: end the connection
                raise ConnectionAbortedError("the response broke off") from None
            await response(scope, receive, watch)

    def _tenant(self, scope: Scope) -> str:
        if not self._keys or scope["path"] in PUBLIC:
            return ""
        kind, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        tenant = self._keys.tenant_of(key.strip()) if kind.lower() == b"bearer" else None
        if tenant is None:
            raise HttpError(401, "no valid API key: send `Authorization: Bearer KEY`", KEY_CODE)
        return tenant

    def _answer(self, error: Exception, scope: Scope) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        if not isinstance(error, HTTPException):
            return error_response(error)
        headers = error.headers or {}
        detail = error.detail
        if error.status_code == 404:
            detail = f"not served; this server has {', '.join(self._served)}"
        elif error.status_code == 405:
            detail = f"wrong method, allowed: {headers.get('Allow', 'none')}"
        message = f"{scope['method']} {scope['path'][:MAX_PATH]}: {detail}"
        response = error_response(HttpError(error.status_code, message))
        response.headers.update(headers)
        return response


KEY_CODE = "invalid_api_key"
CLIENT_GONE = 499  # the client has gone before it; for access logs and counts
MAX_PATH = 256  # characters of a path in an error
NO_CROSS_ORIGIN = (
    "OPTIONS: wrong method; a browser sends it for a page of another origin, which may ask only "
    "when the setting allowed_origins names that origin"
)
