"""Messages as chat templates expect them: absent fields are absent, every content is one text.

Clients leave out, null and nest what templates print as it is: a null would stand in the prompt
as "None". Each becomes what vLLM makes of it, so that both servers build one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from blockllm.api import wire
from blockllm.api.fields import REFUSED_OF_MESSAGE
from blockllm.api.parse import check_refused
from blockllm.errors import BadRequest

# kind of a content part → the field of its text
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}


def plain_messages(messages: Sequence[wire.Message], knows_developer: bool) -> list[dict[str, Any]]:
    """The messages as dictionaries; `knows_developer`: the template has a role of that name, in
    others its messages are the system's. Raises BadRequest for a part that is not text.
    """
    return [
        _plain_message(message, index, knows_developer) for index, message in enumerate(messages)
    ]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[wire.Message]:
    """Messages of a caller in this process, checked as those of a request. Raises BadRequest."""
    try:
        return msgspec.convert([dict(message) for message in messages], list[wire.Message])
    except msgspec.ValidationError as error:
        raise BadRequest(f"messages: {error}", "messages") from error
    except UnicodeEncodeError as error:
        raise BadRequest("messages: a lone surrogate is not Unicode", "messages") from error


def variables_of(fields: wire.TemplateFields) -> dict[str, Any]:
    """What a request gives its template beside the messages."""
    variables = dict(fields.chat_template_kwargs or {})
    if fields.documents is not None:
        variables["documents"] = fields.documents
    if fields.reasoning_effort is not None:
        variables["reasoning_effort"] = fields.reasoning_effort
        variables.setdefault("enable_thinking", fields.reasoning_effort != "none")
    return variables


def _plain_message(message: wire.Message, index: int, knows_developer: bool) -> dict[str, Any]:
    for field, rule in REFUSED_OF_MESSAGE.items():
        check_refused(f"messages[{index}].{field}", getattr(message, field), rule)
    role = message.role
    if role == "developer" and not knows_developer:
        role = "system"
    content = message.refusal if message.content is None else message.content
    plain: dict[str, Any] = {"role": role, "content": _text(content, index)}
    for field in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        value = getattr(message, field)
        if value is not None:
            plain[field] = value
    if message.tool_calls:
        plain["tool_calls"] = [_with_read_arguments(call) for call in message.tool_calls]
    return plain


def _text(content: str | list[str | wire.ContentPart] | None, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part if isinstance(part, str) else _part_text(part, index) for part in content)
    return "\n".join(text for text in texts if text is not None)


def _part_text(part: wire.ContentPart, index: int) -> str | None:
    field = TEXT_PARTS.get(part.type)
    if field is None:
        param = f"messages[{index}].content"
        expected = ", ".join(TEXT_PARTS)
        raise BadRequest(
            f"{param}: got a part of type {part.type[:64]!r}, but only text is supported: "
            f"send parts of type {expected}",
            param,
        )
    text: str | None = getattr(part, field)
    return text


def _with_read_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object: the protocol sends them as JSON in a text, which
    a template would encode again. Text that is no JSON becomes an empty object: it stands in the
    conversation's history, so refusing it would end the conversation.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        return dict(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    elif not isinstance(arguments, dict | list):
        arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}
