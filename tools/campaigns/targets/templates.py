"""Chat templates: compiled, asked for their rules, and rendered with conversations of any kind."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from blockllm.api import template as templates
from blockllm.api import text_calls
from blockllm.api.conversation import plain_messages, read_messages
from blockllm.api.text_calls import TextContent, chat_call
from blockllm.errors import BadRequest
from blockllm.workers.call import Limits
from blockllm.workers.single import SingleWorker
from tools.campaigns import makings, template_tasks
from tools.campaigns.documents import put
from tools.campaigns.draws import Draws, edited, flipped
from tools.campaigns.oracle import Target

SECONDS = 0.2  # of computing one rendering; a server gives more
CHARACTERS = 1 << 16
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "hi"}, "there"]},
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}]},
    {"role": "tool", "tool_call_id": "c", "content": "4"},
    {"role": "developer", "content": "x", "name": "n"},
]  # fmt: skip
INTACT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% elif m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}"
    "{% endif %}{% endfor %}{{ ns.n }}",
    "{% macro say(x, n=2) %}{{ x * n }}{% endmacro %}{% if messages[0].role != 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{{ say(messages[0].content) }}"
    "{{ strftime_now('%d %b') }}",
    "{% generation %}{{ messages[-1].content.split('</think>')[-1].lstrip('\n') }}"
    "{% endgeneration %}{% for i in range(3) %}{% if loop.last %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}",
)
PIECES = (
    "{% endfor %}", "{% for a in b %}", "{% for k, v in x | items %}", "{% if x %}",
    "{% elif y %}", "{% else %}", "{% endif %}", "{% set x = ", "{% set x %}", "%}",
    "{% endset %}", "{% macro f(a, b=[]) %}", "{% endmacro %}", "{% call f(1) %}",
    "{% endcall %}", "{% filter upper %}", "{% endfilter %}", "{% block a %}", "{% endblock %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% with a = 1 %}",
    "{% endwith %}", "{% raw %}", "{{ ''.__class__ }}", "{{ x.append(1) }}",
    "{{ messages.clear() }}", "{{ namespace(_a=1) }}", "{{ cycler(1, 2).next() }}",
    "{{ joiner() }}", "{{ messages | map(attribute='role') | list }}",
    "{{ messages | selectattr('role') | list }}", "{{ 'x' | replace('', 'y' * 999) }}",
    "{{ 'a' | batch(0) }}", "{{ 1 / 0 }}", "{{ 1 // 0.0 }}", "{{ none.x }}", "{{ messages[99] }}",
    "{{ messages['a'] }}", "{{ 'a' | slice(0) | list }}", "{{ [3, 'a'] | sort }}",
    "{{ x | xmlattr }}", "{{ 'x' | wordwrap(0) }}", "{{ 'x' | truncate(-1) }}",
    "{{ 1 | filesizeformat }}", "{{ self }}", "{{ 'x' | urlize }}", "{{ x | attr('__init__') }}",
    "{{ caller() }}", "{{ loop(messages) }}", "{{ dict(a=1).items() | list }}",
    "{{ (1, 2) | random }}", "{{ 'é'.encode() }}", "{# a #}", "-%}",
    "{{ strftime_now('%' * 99) }}", "{{ raise_exception(messages) }}", "{{ x if }}", "'", '"',
    "\x00",
)  # fmt: skip
# these take all memory or time that there is, some of them inside one call of C
MONSTERS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ '%s' * 99999 % (x,) }}",
    "{{ '%999999999d' % 1 }}", "{{ 'a' * 99999999 }}",
    "{{ x ~ x ~ x }}", "{{ [1] * 10**9 }}", "{{ 2 ** 99999 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ 'x'.ljust(10**9) }}", "{{ 'x' | center(10**9) }}", "{{ 'a'.join(range(10**8)) }}",
    "{{ messages | tojson(indent=10**9) }}", "{{ 'a' | indent(10**9) }}",
    "{{ range(10**9) | sum }}", "{{ lipsum(n=10**6) }}", "{{ '{:999999999}'.format(1) }}",
    "{{ 1 | round(9**9) }}",
)  # fmt: skip


def template(_scratch: Path) -> Target:
    """A template's source, with conversations that may be anything a client can send; in this
    process, so without pieces that never end."""
    templates.MAX_CHARACTERS = CHARACTERS
    signal.signal(signal.SIGPROF, _stop)

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind = draws.below(4)
        conversation = edited(MESSAGES, Draws(draws.take(16)), ["role", "content", "text", "user"])
        source = _source(draws, kind)
        _render(source, conversation)

    rests = [b"\3" + bytes(16) + text.encode() for text in INTACT]
    built = [bytes([i % 3]) + bytes(range(16)) + bytes(range(i, i + 24)) for i in range(0, 96, 8)]
    return Target((*rests, *built), run, 2048)


def endless_template(scratch: Path) -> Target:
    """The same in a worker, with pieces that take all memory or time: the request is refused."""
    folder = scratch / "endless-template"
    folder.mkdir(exist_ok=True)
    base = makings.base(scratch)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        put(folder / name, (base / name).read_bytes())
    files = {path.name: str(path) for path in folder.iterdir()}
    files["chat_template.jinja"] = str(folder / "chat_template.jinja")
    limits = Limits(memory=256 << 20, answer=1 << 20, seconds=template_tasks.SECONDS)
    worker = SingleWorker(template_tasks.__name__, limits)

    def run(data: bytes) -> None:
        draws = Draws(data)
        source = _source(draws, 0, MONSTERS).encode()
        put(folder / "chat_template.jinja", source)
        content = TextContent(files, "llama", "tokenizer", hashlib.sha256(source).hexdigest())
        messages = [text_calls.wire.Message("user", "hi"), text_calls.wire.Message("tool", "4")]
        call = chat_call(content, messages, {"x": "y"})
        assert isinstance(call.arguments, text_calls.Chat)
        call.arguments.seconds = template_tasks.SECONDS
        assert all(0 <= index < 96 for index in worker.call(call))

    built = [bytes([0, i % 4, 3, *range(i, i + 12)]) for i in range(0, 240, 7)]
    return Target(tuple(built), run, 64, ("subprocess.Popen",))


class _TimeIsUp(BaseException):
    """A worker would end."""


def _stop(number: int, frame: object) -> None:
    raise _TimeIsUp


def _source(draws: Draws, kind: int, pieces: Sequence[str] = PIECES) -> str:
    if kind == 3:
        return draws.rest().decode("utf-8", "replace")
    text = draws.pick(INTACT)
    if kind == 2:
        return flipped(text.encode(), draws).decode("utf-8", "replace")
    for _ in range(1 + draws.below(6)):
        whole = [0, *(found.end() for found in re.finditer("[%}]}", text)), len(text)]
        at = draws.pick(whole) if draws.below(4) else draws.below(len(text) + 1)
        text = text[:at] + draws.pick(pieces) + text[at:]
    return text


def _render(source: str, conversation: Any) -> None:
    made = templates.ChatTemplate(source, {"bos_token": "<s>"})
    if not isinstance(conversation, list):
        return
    if not all(isinstance(message, dict) for message in conversation):
        return
    messages = plain_messages(read_messages(conversation), made.knows_developer)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        text = made.render(messages, True, {"documents": [{"a": 1}], "x": "y"})
    except BadRequest as error:
        msgspec.json.encode(str(error).encode("utf-8", "replace"))
        raise
    except _TimeIsUp as error:
        raise BadRequest("the chat template took longer than is allowed", "messages") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert len(text) <= CHARACTERS
