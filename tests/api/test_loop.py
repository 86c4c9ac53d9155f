"""What takes long is not done on the event loop, which serves all other clients meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockllm.api import serving as serving_module
from blockllm.api import wire
from blockllm.api.conversation import plain_messages
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.parse import parse
from blockllm.api.tokenizer import TextTokenizer
from tests.api.test_auth import make

LONG = "a" * 5000
CALL = {"function": {"name": "f", "arguments": json.dumps({"a": [1] * 3000})}}


@pytest.mark.parametrize(
    ("message", "fields", "on_loop"),
    [
        ({"content": "short"}, {}, True),
        ({"content": LONG}, {}, False),
        ({"tool_calls": [CALL]}, {}, False),
        ({"reasoning_content": LONG}, {}, False),
        ({"name": LONG}, {}, False),
        ({}, {"documents": [{"text": LONG}]}, False),
        ({}, {"chat_template_kwargs": {"x": LONG}}, False),
    ],
)
def test_long_conversations_are_read_on_another_thread(
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    message: dict[str, object],
    fields: dict[str, object],
    on_loop: bool,
):
    seen = []

    def read(messages: list[wire.Message], knows_developer: bool) -> list[dict[str, object]]:
        seen.append(threading.current_thread() is threading.main_thread())
        return plain_messages(messages, knows_developer)

    monkeypatch.setattr(serving_module, "plain_messages", read)
    _, serving, _ = make(models, KeyRing([]))
    sent = {"messages": [{"role": "user", **message}], **fields}
    body = parse(json.dumps(sent).encode(), wire.ChatRequest)
    model = models.find("base")
    asyncio.run(serving_module.chat_ids(serving, model, body.messages, body))
    assert seen == [on_loop]


def test_many_short_messages_are_read_on_another_thread(models: Models):
    _, serving, _ = make(models, KeyRing([]))
    threads = threading.active_count()
    body = parse(
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 500}).encode(),
        wire.ChatRequest,
    )

    async def ask() -> int:
        model = models.find("base")
        await serving_module.chat_ids(serving, model, body.messages, body)
        return threading.active_count()

    assert asyncio.run(ask()) > threads


def test_other_threads_run_while_a_text_becomes_tokens(byte_level: TextTokenizer):
    text = "The quick brown fox " * 50_000  # takes a quarter of a second
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(byte_level.encode, text, True)
        ticks = 0
        while not working.done():
            time.sleep(0.002)
            ticks += 1
    assert ticks > 5
    assert byte_level.decode(working.result(), skip_special=True) == text
