"""Web pages of other origins: browsers ask which of them may ask the server (CORS)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from blockllm.api.errors import HttpError, error_response
from blockllm.observability.counts import Totals

METHODS = ("GET", "POST")
MAX_AGE = 600  # seconds for which a browser remembers the answer


def admit_pages(app: ASGIApp, origins: str, refused: Totals) -> ASGIApp:
    """The application for programs and for pages of these origins, commas between; `*` is any.

    Without origins it is the application itself. `refused` counts the browsers' questions that are
    answered with no.
    """
    names = [name for name in map(str.strip, origins.split(",")) if name]
    return _Pages(app, names, refused) if names else app


class _Pages(CORSMiddleware):
    """Answers browsers before the guard does: they ask without a key. A refusal is our error."""

    def __init__(self, app: ASGIApp, origins: Collection[str], refused: Totals) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            expose_headers=("retry-after",),
            max_age=MAX_AGE,
        )
        self._refused = refused

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        self._refused.add(str(response.status_code))
        origin = request_headers.get("origin", "")[:256]
        method = request_headers.get("access-control-request-method", "")[:16]
        return error_response(
            HttpError(
                response.status_code,
                f"OPTIONS: got the origin {origin!r} and the method {method!r}; allowed are "
                f"{', '.join(METHODS)} by pages of the setting allowed_origins",
            )
        )
