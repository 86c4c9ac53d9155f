"""Reading request bodies: JSON only, and never more than the limit."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from blockllm.api.errors import HttpError
from blockllm.api.parse import parse

T = TypeVar("T", bound=msgspec.Struct)
JSON = "application/json"
UNDECLARED = ("", "application/x-www-form-urlencoded")  # what `curl -d` sends by default


async def read_body(request: Request, kind: type[T], limit: int) -> T:
    """The body as `kind`. Raises BadRequest, or HttpError 413 and 415."""
    _check_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(len(body), limit)
    return parse(bytes(body), kind)


def _check_type(request: Request) -> None:
    """Raises HttpError 415. Bodies without a type, or of the type that curl gives them, are taken
    from programs, not from web pages: a page of any origin can make its browser send them to a
    local server, which browsers ask for permission before they send JSON. Browsers name the
    page's origin.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HttpError(415, f"content-encoding: got {encoding[:64]!r}, expected none")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or (kind in UNDECLARED and "origin" not in request.headers):
        return
    raise HttpError(415, f"content-type: got {kind[:64] or 'none'!r}, expected {JSON!r}")


def _too_large(got: int, limit: int) -> HttpError:
    return HttpError(413, f"body: got {got} bytes or more, allowed {limit}", "body_too_large")
