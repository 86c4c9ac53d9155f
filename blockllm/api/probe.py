"""What a model's tokenizer and template do with texts, tried in a worker when it is added.

Texts that slow patterns trip over, and conversations of each role. A template may refuse one of
them; breaking a limit is what it may not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from blockllm.api import text_calls, wire
from blockllm.api.text import content_of
from blockllm.errors import CheckpointError, ContentFault, RequestError
from blockllm.workers.single import SingleWorker
from blockllm.zoo.text.files import TOKENIZER

TEXTS = (
    "Hello, world! It's 2:30; that costs $4.99.",
    "a" * 64 + "!",
    "ab" * 100,
    " " * 300 + "\n" * 40,
    "9" * 100 + "x",
    "Größe, größer 日本語のテキスト Ελληνικά العربية 👩‍👩‍👧‍👦 \u0301\u200d",
    "<|im_start|> [INST] <s> </s> <0x41> ▁ Ġ \x00\x1b[31m",
)
IDS_PER_CHARACTER = 16  # bytes of a character are four; some tokenizers write marks between
CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
)


def probe_texts(files: Mapping[str, Path], family: str) -> None:
    """Raises CheckpointError for a tokenizer or template that breaks its limits."""
    if not files:
        return
    content, worker, has_tokenizer = content_of(files, family), _worker(), TOKENIZER in files
    try:
        worker.call(text_calls.open_call(content, wants_decoding=False))
        for text in TEXTS if has_tokenizer else ():
            _encode(worker, content, text)
        for roles in CONVERSATIONS if content.template and has_tokenizer else ():
            messages = [wire.Message(role, TEXTS[0]) for role in roles]
            try:
                worker.call(text_calls.chat_call(content, messages, {}))
            except RequestError:  # many templates know no system, or no tools
                continue
    except ContentFault as fault:
        raise CheckpointError(f"its {fault.part or 'text files'} {fault}") from fault


def _encode(worker: SingleWorker, content: text_calls.TextContent, text: str) -> None:
    try:
        ids = worker.call(text_calls.encode_call(content, text, True, "prompt"))
    except RequestError as error:
        raise CheckpointError(f"its tokenizer cannot read a text: {error}") from error
    if len(ids) > IDS_PER_CHARACTER * len(text):
        raise CheckpointError(
            f"its tokenizer makes {len(ids)} ids of {len(text)} characters, expected at most "
            f"{IDS_PER_CHARACTER} of each"
        )


@functools.cache
def _worker() -> SingleWorker:
    """One for all models of a command."""
    return SingleWorker(text_calls.TASKS)
