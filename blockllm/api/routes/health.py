"""GET /health, /ready and /metrics."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blockllm.api.exchangeable import not_ready
from blockllm.api.serving import Serving
from blockllm.errors import AgentDied, Overloaded
from blockllm.observability.metrics import write


def routes(serving: Serving) -> list[Route]:
    """For load balancers and Prometheus."""

    async def health(request: Request) -> Response:
        if not serving.agent.alive:
            raise AgentDied("the agent process is not running; it is being restarted")
        return Response()

    async def ready(request: Request) -> Response:
        if serving.draining:
            raise Overloaded("the server is shutting down")
        if not serving.agent.ready:
            return not_ready(serving.agent.progress)
        return Response()

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(write, serving.metrics.collect())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
