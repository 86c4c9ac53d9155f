"""Errors as clients see them: OpenAI's error objects, for every status."""

from __future__ import annotations

import logging
import re
import traceback

import msgspec
from starlette.responses import Response

from blockllm.api.answers import ErrorAnswer, ErrorBody
from blockllm.errors import BlockllmError, EngineError, RequestError

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
RETRY_SECONDS = 1
IN_THE_LOG = "the reason is in the server's log"
_PATH = re.compile(r"(?<![\w.*/])~?/+[^\s/]|[A-Za-z]:\\")  # an absolute path, not a part of one

logger = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class HttpError(RequestError):
    """A request refused for how it was sent, not for what it says."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def describe(error: BaseException) -> tuple[int, ErrorAnswer]:
    """Status and object for any error. One we did not raise on purpose is logged, not shown."""
    if isinstance(error, RequestError):
        body = ErrorBody(str(error), _type(error.status), error.param, error.code)
        return error.status, ErrorAnswer(body)
    if isinstance(error, EngineError):
        return error.status, ErrorAnswer(ErrorBody(without_paths(str(error)), _type(error.status)))
    if not isinstance(error, BlockllmError):
        log_crash(error)
    return 500, ErrorAnswer(ErrorBody("internal error; the server's log has it", "server_error"))


def without_paths(reason: str) -> str:
    """What clients read of a reason that the server found: none of its machine's folders."""
    return IN_THE_LOG if _PATH.search(reason) else reason


def error_response(error: BaseException) -> Response:
    """The whole HTTP answer for an error."""
    status, answer = describe(error)
    headers = {"retry-after": str(RETRY_SECONDS)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(answer, status, headers)


def json_response(
    answer: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A struct as JSON."""
    return Response(_encode(answer), status, headers, media_type="application/json")


def log_crash(error: BaseException) -> None:
    """Where it happened, without the message: messages may quote prompts or keys."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s\n%s", type(error).__name__, frames)


def _type(status: int) -> str:
    return TYPES.get(status, "invalid_request_error")
