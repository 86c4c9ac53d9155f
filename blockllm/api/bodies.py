"""Reading request bodies: JSON only, and never more than the limit."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from blockllm.api.errors import HttpError
from blockllm.api.parse import parse
from blockllm.errors import Overloaded
from blockllm.shares import has_room

T = TypeVar("T", bound=msgspec.Struct)
JSON = "application/json"
UNDECLARED = ("", "application/x-www-form-urlencoded")  # what `curl -d` sends by default


class UnreadBodies:
    """Bytes of bodies that have not ended, over all connections: bounded, and shared by tenants."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, Counter[str]()

    @contextlib.contextmanager
    def of(self, tenant: str) -> Iterator[Callable[[int], None]]:
        """What counts the bytes of one body, until it is left. Raises Overloaded."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            taken = self._held.total()
            share_is_full = tenant and not has_room(self._held[tenant], taken, self._most)
            if taken + count > self._most or share_is_full:
                raise Overloaded(
                    f"{taken} bytes of unfinished bodies wait already; try again later"
                )
            own += count
            self._held[tenant] += count

        try:
            yield take
        finally:
            self._held[tenant] -= own
            if not self._held[tenant]:
                del self._held[tenant]


async def read_body(request: Request, kind: type[T], limit: int, take: Callable[[int], None]) -> T:
    """The body as `kind`; `take` counts its bytes as they come. Raises BadRequest, Overloaded, or
    HttpError 413 and 415."""
    _check_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    body = bytearray()
    async for chunk in request.stream():
        take(len(chunk))
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
