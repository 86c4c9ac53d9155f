"""Messages as one chat template reads them.

Templates differ in what they take for a message's text and calls, and one that is given something
else leaves it out of the prompt without an error. So a template is asked: it renders messages in
each spelling, and its habit is the first that it shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from blockllm.errors import BadRequest

Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing's names, the usual first
_SHOWN = "shown7qz"


class ReadingRules(NamedTuple):
    """`parts`: content has to be a list of parts; `null_beside_calls`: the calls of a message are
    left out unless its content is null."""

    parts: bool = False
    null_beside_calls: bool = False


class Arguments(dict[str, Any]):
    """The arguments of a call: an object that prints as JSON, since some templates walk it and
    others write it into the prompt as it is."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


def find_reading_rules(render: Callable[[list[Message]], str]) -> ReadingRules:
    """The rules of the template that `render` fills; BadRequest is its way to refuse."""

    def shows(*messages: Message) -> bool:
        try:
            return _SHOWN in render(list(messages))
        except BadRequest:
            return False

    user = {"role": "user", "content": _SHOWN}
    function = {"name": _SHOWN, "arguments": {"a": 1}}
    call = {"id": "000000000", "type": "function", "function": function}
    asked = as_read({"role": "user", "content": "a"}, ReadingRules())
    caller = as_read({"role": "assistant", "content": "", "tool_calls": [call]}, ReadingRules())
    return ReadingRules(
        not shows(user) and shows({**user, "content": _as_parts(_SHOWN)}),
        not shows(asked, caller) and shows(asked, {**caller, "content": None}),
    )


def as_read(message: Message, rules: ReadingRules) -> Message:
    """A plain message as a template of these rules reads it."""
    read = _with_reasoning(dict(message))
    calls, content = message.get("tool_calls"), message.get("content")
    if calls:
        read["tool_calls"] = [_with_printable_arguments(call) for call in calls]
    if calls and not content and rules.null_beside_calls:
        read["content"] = None
    elif isinstance(content, str) and rules.parts:
        read["content"] = _as_parts(content)
    return read


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read."""
    given = (message[name] for name in REASONING if message.get(name) is not None)
    reasoning = next(given, None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_printable_arguments(call: Message) -> Message:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": Arguments(function["arguments"])}}
