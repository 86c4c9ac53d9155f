"""What a worker and its parent send each other, read at both ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from blockllm.api import text_calls
from blockllm.api.text_calls import TextContent, chat_call, decode_call, encode_call, open_call
from blockllm.api.text_tasks import handlers
from blockllm.errors import CheckpointError
from blockllm.workers.call import (
    WORDS,
    Answer,
    Call,
    Fault,
    Limits,
    Refusal,
    question_of,
    read_answer,
    result_of,
)
from blockllm.workers.frames import Assembly, frame
from blockllm.workers.main import answer
from tools.campaigns import makings
from tools.campaigns.documents import read_document, seeds_of, words_of
from tools.campaigns.draws import Draws, flipped
from tools.campaigns.oracle import Target

LIMITS = Limits()


class _Note:
    """Takes what a task says of itself; nothing is limited."""

    part = ""

    def at(self, part: str, seconds: float | None = None) -> None:
        """From now on `part` is at fault."""
        self.part = part


def _calls(scratch: Path) -> list[Call[Any]]:
    """One of each kind, about the files of the base."""
    folder = makings.base(scratch)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    content = TextContent({name: str(folder / name) for name in names}, "llama", "t", "c")
    messages = [text_calls.wire.Message("user", "hi <s>")]
    return [
        open_call(content, True),
        encode_call(content, "hi", True, "prompt"),
        chat_call(content, messages, {"x": 1}, max_context=200),
        decode_call(content, [1, 2, 3]),
    ]


def to_worker(scratch: Path) -> Target:
    """Questions: every one is answered, and the answer can be read."""
    questions = [json.loads(question_of(call)) for call in _calls(scratch)]
    tasks, words = handlers(), words_of(questions)

    def run(data: bytes) -> None:
        given = answer(read_document(data, questions, words), tasks, _Note(), LIMITS.answer)
        read = read_answer(msgspec.json.encode(given))
        if read.refusal is not None or read.fault is not None:
            raise CheckpointError("refused")

    return Target(seeds_of(questions), run, 2048)


def from_worker(scratch: Path) -> Target:
    """Answers, in frames and in pieces: a result, an error of ours, or no answer at all."""
    calls = _calls(scratch)
    answers = [
        Answer(msgspec.Raw(b"[1, 2]")),
        Answer(msgspec.Raw(b'"text"')),
        Answer(refusal=Refusal("BadRequest", "no", "prompt")),
        Answer(refusal=Refusal("ContentFault", "no")),
        *(Answer(fault=Fault(kind, "tokenizer", "detail")) for kind in WORDS),
    ]
    plain = [json.loads(msgspec.json.encode(given)) for given in answers]
    words = [*words_of(plain), "ContextTooLong", "BlockllmError", "off", "WorkerDied"]

    def run(data: bytes) -> None:
        draws = Draws(data)
        call, is_damaged = draws.pick(calls), draws.below(4) == 0
        framed = frame(read_document(draws.rest(), plain, words))
        framed = flipped(framed, Draws(data)) if is_damaged else framed
        assembly = Assembly()
        try:
            if not any([assembly.add(framed[:3]), assembly.add(framed[3:])]):
                raise ValueError("more is to come")
            read = read_answer(assembly.content())
        except ValueError as error:  # the parent ends such a worker
            raise CheckpointError(str(error)) from error
        result_of(read, call)

    return Target(tuple(b"\0\1" + seed for seed in seeds_of(plain)), run, 1024)
