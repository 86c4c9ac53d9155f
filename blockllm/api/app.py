"""The ASGI application: guard → routes."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from blockllm.api.guard import Guard
from blockllm.api.keys import KeyRing
from blockllm.api.routes import chat, completions, health, listing, tokens
from blockllm.api.serving import Serving


def all_routes(serving: Serving) -> list[Route]:
    """Every route of the server."""
    groups = (chat, completions, listing, tokens, health)
    return [route for group in groups for route in group.routes(serving)]


def make_app(serving: Serving, keys: KeyRing) -> ASGIApp:
    """The whole application."""
    routes = all_routes(serving)
    served = [f"{min(route.methods or ())} {route.path.replace(':path', '')}" for route in routes]
    router = Router(routes, redirect_slashes=False)
    return Guard(router, keys, served, serving.metrics.refused)
