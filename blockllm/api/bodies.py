"""Reading request bodies: JSON only, and never more than the limit."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from blockllm.api import wire
from blockllm.api.errors import HttpError

T = TypeVar("T")


async def read_body(request: Request, kind: type[T], limit: int) -> T:
    """The body as `kind`. Raises BadRequest, or HttpError 413 and 415."""
    # a web page can make a browser send other types to a local server without asking it first
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HttpError(415, "content-type: expected application/json")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(len(body), limit)
    return wire.parse(bytes(body), kind)


def _too_large(got: int, limit: int) -> HttpError:
    return HttpError(413, f"body: got {got} bytes or more, allowed {limit}", "body_too_large")
