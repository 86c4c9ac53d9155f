"""A worker's tasks with little time for each, for templates that are made to take all of it."""

from __future__ import annotations

from blockllm.api import text_tasks
from blockllm.workers.call import Handlers

SECONDS = 0.3  # of computing; a server gives more


def handlers() -> Handlers:
    """The tasks of a server."""
    text_tasks.LOAD_SECONDS = SECONDS
    return text_tasks.handlers()
