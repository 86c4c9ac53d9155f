"""Every operation of the server's own OpenAPI document, with data that follows its schema, and with
edits of such data."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tools.campaigns.answers import Answer, check_answer, read_answers
from tools.campaigns.documents import words_of
from tools.campaigns.draws import Draws, edited
from tools.campaigns.loop import VirtualLoop
from tools.campaigns.oracle import Target
from tools.campaigns.schema_values import Operation, Values, operations_of
from tools.campaigns.script import plain_request
from tools.campaigns.stand import KEEP_ALIVE, Stand

DOCUMENT = b"/openapi.json"
MODELS = ("base", "tuned")
# refused although the schema allows it: a conversation too long, a name of no model
SEMANTIC = frozenset({"400", "404", "413"})


def operation(scratch: Path) -> Target:
    """One request to one operation; its status is one that the document names."""
    stand, loop = Stand(scratch), VirtualLoop()
    asyncio.set_event_loop(loop)
    answer = loop.run_until_complete(_ask(stand, plain_request(DOCUMENT)))
    document = json.loads(answer.body)
    operations, values = list(operations_of(document)), Values(document)
    words = words_of([document.get("components", {})])

    def run(data: bytes) -> None:
        draws = Draws(data)
        which, is_valid = draws.pick(operations), draws.below(3) > 0
        request = _request(which, values, draws, words if not is_valid else [])
        found = loop.run_until_complete(_ask(stand, request))
        stand.check_books()
        if found.headers.get(b"content-type") == b"application/json" or found.status >= 400:
            check_answer(found)
        status = str(found.status)
        is_known = status in which.statuses or "default" in which.statuses
        assert is_known, f"{which.method} {which.path}: {status} is not documented"
        if is_valid:
            assert status in SEMANTIC or found.status < 400, f"{which.path}: {status}"

    seeds = [bytes([i, j, *range(j, j + 40)]) for i in range(len(operations)) for j in range(4)]
    return Target(tuple(seeds), run, 256)


def _request(which: Operation, values: Values, draws: Draws, words: list[str]) -> bytes:
    """Valid data, or edited with the document's words if there are any."""
    path = which.path
    while "{" in path:
        start, _, rest = path.partition("{")
        path = start + draws.pick(MODELS) + rest.partition("}")[2]
    body: Any = None
    if which.body is not None:
        body = values.draw(which.body, draws)
        if isinstance(body, dict) and "model" in body:
            body["model"] = draws.pick(MODELS)
        if words:
            body = edited(body, draws, words)
    return plain_request(path.encode(), body)


async def _ask(stand: Stand, request: bytes) -> Answer:
    """The one answer to one request."""
    stand.seen.clear()
    loop = asyncio.get_running_loop()
    wire, _ = stand.connect(loop)
    wire.send(request)
    async with asyncio.timeout(2 * KEEP_ALIVE):
        await wire.closed.wait()
    for _ in range(8):
        await asyncio.sleep(0)
    (answer,), rest = read_answers(bytes(wire.written))
    assert not rest and wire.closed_at is not None
    return answer
