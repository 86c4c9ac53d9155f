from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.api import template as template_module
from blockllm.api.template import ChatTemplate
from blockllm.errors import BadRequest

MESSAGES = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "ä & b"}]
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
]


@pytest.mark.parametrize("source", SOURCES)
def test_renders_as_transformers_does(source: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="e"
    )
    ours = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "e"}).render(MESSAGES)
    if "tools is defined" in source:  # transformers always defines it, as None
        expected = [expected[0].replace("True", "False")]
    assert [ours] == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
    ],
)
def test_a_hostile_or_refusing_template_is_a_bad_request(
    source: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.1)
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
