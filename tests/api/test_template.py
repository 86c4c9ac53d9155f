from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.api.template import ChatTemplate
from blockllm.errors import BadRequest

MESSAGES = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "ä & b"}]
REASONED = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "reasoning_content": "because"},
    {"role": "assistant", "content": "c", "reasoning": "therefore"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Köln", "n": 1.0}}}],
    },
]
SOURCES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] }}]\n"
    "  {% endif %}\n{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ m | tojson }}{{ m|tojson(indent=2) }}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}"
    "{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{% generation %}{{ messages[-1].content.strip().split(' ')[0] }}"
    "{% endgeneration %}",
    "{% if add_generation_prompt %}<go>{% endif %}{{ messages | length }}{{ 'ab' * 2 }}",
    "{% macro turn(m) %}<{{ m.role | upper }}>{% endmacro %}{{ turn(messages[0]) }}"
    "{{ messages[1:] | map(attribute='content') | join(',') }}{{ tools is defined }}",
    # what is not given
    "{% if tools is none %}A{% else %}B{% endif %}",
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}x",
    "{% if documents is not none %}DOCS{% endif %}x{{ documents is defined }}",
    "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools is none }}",
    "{{ tools or 'no tools' }}{{ tools is undefined }}{{ [tools, documents] }}",
    "{{ pad_token is defined }}{{ unk_token }}{{ sep_token | default('-') }}",
    # tojson
    "{{ messages | tojson(ensure_ascii=True) }}{{ '<>&\\'' | tojson }}",
    "{{ {'b': 1, 'a': [1.0, none, true]} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "{{ messages | tojson(indent=4, ensure_ascii=False) }}{{ 'ä' | tojson }}",
    # the reasoning's names
    "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};"
    "{% endfor %}",
    "{% for m in messages %}{% if m.reasoning_content is defined %}{{ m | tojson }}{% endif %}"
    "{% endfor %}",
    # scopes
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}{% endgeneration %}\n"
    "{% endfor %}",
    "a  {%- generation -%}  b  {%- endgeneration -%}  c",
    "  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "{% set ns = namespace(self='a', items=[]) %}{% set ns.items = ns.items + [1] %}{{ ns.self }}"
    "{{ ns.items }}",
    "{{ dict(a=1, b=2) | items | list }}{{ namespace(a=1).a }}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ loop.last }}{% endfor %}",
    "{{ messages[0].content.__class__ }}x",
    # what real templates do with text
    "{{ (messages[-1].content ~ '\n\n') | trim }}{{ messages[-1].content[::-1] }}",
    "{{ messages[0].content.replace('e', 'E').title() }}{{ messages | selectattr('role', 'equalto',"
    " 'user') | list | length }}",
    "{% set x %}{{ messages[0].role }}{% endset %}{{ x | length }}{{ '%s-%d' | format('a', 3) }}",
    "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}",
    "{{ messages[5] is defined }}{{ nothing }}{{ messages[0].nothing }}",
    "\n{{- 'a' -}}\n{# note #}\n   {% if true %}   b{% endif %}\n\n",
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% for k, v in "
    "c.function.arguments | items %}{{ k }}{{ v }}{% endfor %}{% endfor %}{% endif %}{% endfor %}",
]
REFUSED = [
    "{{ raise_exception('no') }}",
    "{{ namespace(__init__=1) }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("messages", [MESSAGES, REASONED], ids=["plain", "reasoned"])
@pytest.mark.parametrize("source", SOURCES)
def test_renders_as_transformers_does(source: str, messages: list[dict[str, object]]):
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "e"}
    for generation in (True, False):
        expected, _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=generation, **tokens
        )
        assert [ChatTemplate(source, tokens).render(messages, generation)] == expected


@pytest.mark.parametrize("source", REFUSED)
def test_refuses_what_transformers_refuses(source: str):
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    with pytest.raises(TemplateError):
        render_jinja_template([MESSAGES], chat_template=source)
    with pytest.raises(BadRequest, match="chat template"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_variables_stand_before_special_tokens_and_absent_ones():
    template = ChatTemplate("{{ bos_token }}{{ documents[0].text }}", {"bos_token": "<s>"})
    variables = {"bos_token": "<b>", "documents": [{"text": "d"}]}
    assert template.render(MESSAGES, variables=variables) == "<b>d"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ range(10**9) | list }}",
        "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].role | dictsort }}",
        "{{ messages[0].role | truncate(-1) }}",
        "{% include 'other' %}",
    ],
)
def test_a_refusing_template_is_a_bad_request(source: str):
    with pytest.raises(BadRequest, match="chat template"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_damaged_template_says_so():
    with pytest.raises(BadRequest, match="damaged"):
        ChatTemplate("{% for %}", {})


def test_variables_reach_the_template_but_not_the_reserved_ones():
    template = ChatTemplate("{{ enable_thinking }}", {})
    assert template.render(MESSAGES, variables={"enable_thinking": False}) == "False"
    with pytest.raises(BadRequest, match="messages cannot be set"):
        template.render(MESSAGES, variables={"messages": []})


@given(st.text(max_size=50))
def test_content_is_never_read_as_a_template(content: str):
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": content}]) == content
