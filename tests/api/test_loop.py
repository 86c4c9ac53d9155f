"""What takes long is not done on the event loop, which serves all other clients meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockllm.api import text_tasks, wire
from blockllm.api.conversation import plain_messages
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.parse import parse
from blockllm.api.serving import Caller, chat_ids
from blockllm.api.tokenizer import TextTokenizer
from tests.api.test_auth import make


@pytest.mark.parametrize("fields", [{}, {"documents": [{"text": "a" * 5000}]}])
def test_conversations_are_not_read_on_the_loop(
    models: Models, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
):
    seen = []

    def read(messages: list[wire.Message], knows_developer: bool) -> list[dict[str, object]]:
        seen.append(threading.current_thread() is threading.main_thread())
        return plain_messages(messages, knows_developer)

    monkeypatch.setattr(text_tasks, "plain_messages", read)
    _, serving, _ = make(models, KeyRing([]))
    sent = {"messages": [{"role": "user", "content": "short"}], **fields}
    body = parse(json.dumps(sent).encode(), wire.ChatRequest)
    caller, model = Caller("", 0.0), models.find("base")
    asyncio.run(chat_ids(serving, caller, model, body.messages, body, has_to_fit=True))
    assert seen == [False]


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
