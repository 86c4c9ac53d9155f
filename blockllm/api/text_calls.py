"""The calls by which a model's texts are read in a worker: arguments, results and their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from blockllm.api import wire
from blockllm.workers.call import Call

TASKS = "blockllm.api.text_tasks"
# computing that a text of no length may take, and what each of its characters adds: ordinary
# tokenizers read a million characters in a second
LEAST_SECONDS = 2.0
CHARACTERS_PER_SECOND = 200_000
LOAD_SECONDS = 20.0  # to read the largest published tokenizer.json takes three


class TextContent(msgspec.Struct, frozen=True):
    """A model's text files, where they lie, and the digests of what is made of them ("": none)."""

    files: dict[str, str]
    family: str
    tokenizer: str = ""
    template: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """Digests by part."""
        both = {"tokenizer": self.tokenizer, "chat template": self.template}
        return {part: digest for part, digest in both.items() if digest}


class Open(msgspec.Struct):
    """Read a model's tokenizer and template; `wants_decoding`: the answer is to have its part."""

    content: TextContent
    wants_decoding: bool


class Encode(msgspec.Struct):
    """Make ids of the text of a request's field; with `max_context` the text has to fit."""

    content: TextContent
    text: str
    add_special: bool
    field: str
    seconds: float
    max_context: int | None


class Chat(msgspec.Struct):
    """Make the ids of a conversation; api.prompts has what the fields mean."""

    content: TextContent
    messages: Sequence[wire.Message]
    variables: Mapping[str, Any]
    add_generation_prompt: bool
    add_special: bool
    as_tokens: bool
    max_context: int | None
    has_to_fit: bool
    seconds: float


class Decode(msgspec.Struct):
    """Make a text of ids."""

    content: TextContent
    ids: list[int]
    seconds: float


def open_call(content: TextContent, wants_decoding: bool) -> Call[str]:
    """Answers with the decoding part as JSON, if wanted and there is a tokenizer; else nothing."""
    return Call("open", Open(content, wants_decoding), str, content.parts)


def encode_call(
    content: TextContent, text: str, add_special: bool, field: str, max_context: int | None = None
) -> Call[list[int]]:
    """Answers with ids."""
    arguments = Encode(content, text, add_special, field, _seconds(len(text)), max_context)
    return Call("encode", arguments, list[int], content.parts, field)


def chat_call(
    content: TextContent,
    messages: Sequence[wire.Message],
    variables: Mapping[str, Any],
    add_generation_prompt: bool = True,
    add_special: bool = False,
    as_tokens: bool = False,
    max_context: int | None = None,
    has_to_fit: bool = False,
) -> Call[list[int]]:
    """Answers with ids."""
    size = sum(len(text) for message in messages for text in _texts(message.content))
    flags = add_generation_prompt, add_special, as_tokens
    fit = max_context, has_to_fit
    arguments = Chat(content, messages, variables, *flags, *fit, _seconds(size))
    return Call("chat", arguments, list[int], content.parts, "messages")


def decode_call(content: TextContent, ids: list[int]) -> Call[str]:
    """Answers with the text."""
    return Call("decode", Decode(content, ids, _seconds(len(ids))), str, content.parts, "tokens")


def _texts(content: str | list[str | wire.ContentPart] | None) -> list[str]:
    if content is None or isinstance(content, str):
        return [content or ""]
    return [part if isinstance(part, str) else part.text or "" for part in content]


def _seconds(characters: int) -> float:
    return LEAST_SECONDS + characters / CHARACTERS_PER_SECOND
