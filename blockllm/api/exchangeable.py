"""What answers while there is nothing to serve yet: the socket is open from the first moment."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blockllm.api.answers import ErrorBody, NotReadyAnswer, ProgressEntry
from blockllm.api.errors import RETRY_SECONDS, json_response
from blockllm.cluster.messages import Progress


class ExchangeableApp:
    """An ASGI application that is exchanged while it runs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Starting:
    """Answers while models are loaded: `/health` with 200, all else with 503 and the progress."""

    def __init__(self, progress: Callable[[], Progress]) -> None:
        self._progress = progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_health = scope["path"] == "/health"
        response = Response() if is_health else not_ready(self._progress())
        await response(scope, receive, send)


def not_ready(progress: Progress) -> Response:
    """503 with OpenAI's error object and how far loading is."""
    message = f"the server is not ready: {progress}; try again in a few seconds"
    entry = ProgressEntry(progress.activity, progress.done, progress.total)
    answer = NotReadyAnswer(ErrorBody(message, "server_error"), entry)
    return json_response(answer, 503, {"retry-after": str(RETRY_SECONDS)})
