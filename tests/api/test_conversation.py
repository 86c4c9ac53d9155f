"""What clients send as messages, and what templates see of it."""

from __future__ import annotations

import json

import msgspec
import pytest

from blockllm.api import wire
from blockllm.api.conversation import TEXT_PARTS, plain_messages, read_messages
from blockllm.api.template import ChatTemplate
from blockllm.errors import BadRequest

ROLES = ("system", "developer", "user", "assistant", "tool")


def plain(*messages: dict[str, object], knows_developer: bool = False) -> list[dict[str, object]]:
    body = json.dumps(messages).encode()
    read = msgspec.json.decode(body, type=list[wire.Message])
    return plain_messages(read, knows_developer)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"content": None},
        {"content": ""},
        {"content": []},
        {"content": [{"type": "text", "text": None}]},
    ],
)
def test_content_that_says_nothing_is_an_empty_text(role: str, content: dict[str, object]):
    (message,) = plain({"role": role, **content}, knows_developer=True)
    assert message == {"role": role, "content": ""}


def test_a_call_of_a_tool_without_text_does_not_print_none():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (message,) = plain({"role": "assistant", "content": None, "tool_calls": [call]})
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}", {})
    assert template.render([message]) == "[]"


def test_parts_of_text_are_joined():
    parts = [
        "a",
        {"type": "text", "text": "b"},
        {"type": "refusal", "refusal": "I cannot"},
        {"type": "output_text", "text": "c", "annotations": []},
        {"type": "input_text", "text": "d"},
    ]
    assert plain({"role": "user", "content": parts})[0]["content"] == "a\nb\nI cannot\nc\nd"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "thinking", "x"])
def test_parts_that_are_not_text_are_refused_by_name(kind: str):
    with pytest.raises(BadRequest, match=rf"messages\[1\].content: got a part of type '{kind}'"):
        plain({"role": "user"}, {"role": "user", "content": [{"type": kind, "text": "a"}]})
    assert kind not in TEXT_PARTS


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ('{"city": "Berlin", "days": [1, 2]}', {"city": "Berlin", "days": [1, 2]}),
        ({"city": "Berlin"}, {"city": "Berlin"}),
        ('["Berlin"]', ["Berlin"]),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ('{"city": "Ber', {}),
        ("[" * 50_000, {}),
        (5, {}),
    ],
)
def test_arguments_of_calls_are_read(sent: object, seen: object):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": sent}}
    (message,) = plain({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"] == [{**call, "function": {"name": "f", "arguments": seen}}]


def test_arguments_are_encoded_once_and_can_be_walked():
    function = {"name": "f", "arguments": '{"city": "Köln"}'}
    (message,) = plain({"role": "assistant", "tool_calls": [{"function": function}]})
    source = (
        "{% set call = messages[0].tool_calls[0].function %}{{ call.arguments | tojson }}"
        "{% for key, value in call.arguments | items %}({{ key }}={{ value }}){% endfor %}"
    )
    assert ChatTemplate(source, {}).render([message]) == '{"city": "Köln"}(city=Köln)'


@pytest.mark.parametrize("call", [{}, {"function": None}, {"function": "f"}, {"custom": {"a": 1}}])
def test_other_calls_stay_as_they_are(call: dict[str, object]):
    (message,) = plain({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"] == [call]


def test_no_calls_are_no_field():
    for nothing in (None, []):
        (message,) = plain({"role": "assistant", "content": "a", "tool_calls": nothing})
        assert message == {"role": "assistant", "content": "a"}


def test_the_developers_messages_are_the_systems_unless_the_template_knows_the_role():
    message = {"role": "developer", "content": "be brief"}
    for source, role in (
        ("{{ messages[0].role }}", "system"),
        ("{# for developers #}{{ messages[0].role }}", "system"),
        ("{% if messages[0].role == 'developer' %}{{ messages[0].role }}{% endif %}", "developer"),
    ):
        template = ChatTemplate(source, {})
        messages = plain(message, knows_developer=template.knows_developer)
        assert template.render(messages) == role


def test_messages_of_this_process_are_checked_alike():
    assert read_messages([{"role": "user", "content": None}])[0].content is None
    with pytest.raises(BadRequest, match=r"messages: .*role"):
        read_messages([{"content": "a"}])
    with pytest.raises(BadRequest, match=r"messages: .*content"):
        read_messages([{"role": "user", "content": 5}])
    with pytest.raises(BadRequest, match="lone surrogate"):
        read_messages([{"role": "user", "\ud800": "a"}])
