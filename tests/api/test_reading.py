"""Templates that read messages otherwise than most: text in parts, null beside calls."""

from __future__ import annotations

from typing import Any

import pytest

from blockllm.api.template import ChatTemplate
from blockllm.errors import BadRequest

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"city": "Köln"}}}
ASKED = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "here"}]
CALLED = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]

# as of guards and vision models
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content"
    " | selectattr('type', 'equalto', 'text') %}{{ part.text | trim }}{% endfor %}{% endfor %}"
)
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"
EITHER = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }} (part){% endfor %}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("source", [PARTS, FIRST_PART, EITHER, PLAIN])
def test_text_is_shown_whatever_the_template_takes_for_text(source: str):
    assert ChatTemplate(source, {}).render(ASKED) == "[user]where?[assistant]here"
    assert ChatTemplate(source, {}).render([{"role": "tool", "content": ""}]) == "[tool]"


# as DeepSeek's: calls only where the content is none, arguments put between texts
NULL = (
    "{% for m in messages %}{% if m.role == 'assistant' and m['content'] is none %}"
    "{% for call in m.tool_calls %}{{ '<call>' + call.function.name + '\n' +"
    " call['function']['arguments'] + '\n' }}{% endfor %}{% elif m.role == 'assistant' %}"
    "{{ '<says>' + m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_calls_are_shown_though_the_template_wants_null_beside_them():
    template = ChatTemplate(NULL, {})
    assert template.render(CALLED) == 'where?<call>f\n{"city": "Köln"}\n'
    assert template.render(ASKED) == "where?<says>here"
    nothing = [ASKED[0], {"role": "assistant", "content": ""}]
    assert template.render(nothing) == "where?<says>"


def test_text_beside_calls_is_null_only_where_it_has_to_be():
    source = "{% for m in messages %}{{ m.content is none }}{{ m.tool_calls }}{% endfor %}"
    assert "True" not in ChatTemplate(source, {}).render(CALLED)
    said = [CALLED[0], {**CALLED[1], "content": "let me see"}]
    assert ChatTemplate(NULL, {}).render(said) == "where?<says>let me see"


@pytest.mark.parametrize(
    "written",
    [
        "{{ x }}",
        "{{ x | tojson }}",
        "{{ '' + x }}",
        "{{ x + '' }}",
        "{{ x ~ '' }}",
        "{{ x | string }}",
        "{{ '%s' | format(x) }}",
        "{{ x if x is string else x | tojson }}",
        "{% for k, v in x | items %}{{ '{' }}\"{{ k }}\": {{ v | tojson }}}{% endfor %}",
        "{% for k in x %}{{ {k: x[k]} | tojson }}{% endfor %}",
    ],
)
def test_arguments_are_an_object_that_prints_as_json(written: str):
    source = "{% set x = messages[-1].tool_calls[0].function.arguments %}" + written
    assert ChatTemplate(source, {}).render(CALLED) == '{"city": "Köln"}'


@pytest.mark.parametrize("call", [{}, {"function": None}, {"function": {"name": "f"}}, {"a": 1}])
def test_other_calls_stay_as_they_are(call: dict[str, Any]):
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert ChatTemplate("{{ messages[0].tool_calls[0] }}", {}).render(messages) == str(call)


def test_a_template_that_refuses_everything_refuses_the_request():
    with pytest.raises(BadRequest, match="no system"):
        ChatTemplate("{{ raise_exception('no system') }}", {}).render(ASKED)
