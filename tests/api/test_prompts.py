"""Text of messages that spells control tokens stays text; all other prompts are transformers'.

What is right is found with the same tokenizer and template in which the control tokens are called
otherwise: there a message that spells the first names is plain text.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from blockllm.api.conversation import plain_messages, read_messages
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.prompts import ChatPrompts
from blockllm.api.template import ChatTemplate
from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import BadRequest
from blockllm.zoo.text import load_tokenizer
from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer
from tests.api.test_auth import make

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
OWN = ("<think>", "</think>")  # added, not special
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content"
        " | trim + ' [/INST]' }}{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "trimmed": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n"
        "{{ m['content'].strip() | upper | lower if m.role == 'x' else m['content'].strip() }}"
        "<|im_end|>{% endfor %}"
    ),
    "thinking": (
        "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' and"
        " '</think>' in content %}{% set reason = content.split('</think>')[0].rstrip('\n')"
        ".split('<think>')[-1].lstrip('\n') %}{% set content = content.split('</think>')[-1]"
        ".lstrip('\n') %}{% if loop.last %}{% set content = '<think>\n' + reason.strip('\n') +"
        " '\n</think>\n\n' + content %}{% endif %}{% endif %}<|im_start|>{{ m.role }}\n"
        "{{ content }}<|im_end|>\n{% endfor %}"
    ),
    "measured": (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content | length }} "
        "{{ m.content[:9] }}|{{ m.content[9:] }}{{ m.content | tojson }}<|im_end|>{% endfor %}"
    ),
    "escaped": (
        "{% for m in messages %}<|im_start|>{{ m | tojson(ensure_ascii=True) }}<|im_end|>"
        "{% endfor %}"
    ),
}


def bytes_in_words() -> Tokenizer:
    """Byte-level; adds <s> to other texts."""
    return byte_level_tokenizer()


def first_space() -> Tokenizer:
    """A space is put before the first piece of a text only."""
    return sentencepiece_like_tokenizer()


def every_space() -> Tokenizer:
    """The normalizer puts a space before every piece, as Llama 2's does."""
    tokenizer = sentencepiece_like_tokenizer()
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def pieces() -> Tokenizer:
    """Unigram, which finds a control token in its vocabulary even where none is matched."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "▁", *letters, "▁the", "the", "in", "im_", *SPECIAL]
    scores = [(word, -2.0 * (word not in SPECIAL)) for word in dict.fromkeys(words)]
    tokenizer = Tokenizer(models.Unigram(scores, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    return tokenizer


TOKENIZERS = (bytes_in_words, first_space, every_space, pieces)


class Pair(NamedTuple):
    """Ours, theirs, and theirs with the control tokens called otherwise."""

    ours: ChatPrompts
    theirs: Any
    renamed: Any


@functools.cache
def pair(make_tokenizer: Callable[[], Tokenizer], template: str, strips: bool = False) -> Pair:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False, rstrip=strips, lstrip=strips)
            for t in SPECIAL
        ]
    )
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in OWN])
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = Path(tempfile.mkdtemp())
    for name, rename in (("plain", lambda text: text), ("renamed", _rename)):
        path = folder / name
        path.mkdir()
        document = json.loads(tokenizer.to_str())
        _rename_tokens(document, rename)
        (path / "tokenizer.json").write_text(json.dumps(document))
        config = {key: rename(token) for key, token in names.items()}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": rename(template)}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    files = {name: folder / "plain" / name for name in ("tokenizer.json", "tokenizer_config.json")}
    loaded, tokens = load_tokenizer(files, "llama")
    assert loaded is not None
    ours = ChatPrompts(ChatTemplate(template, tokens.texts), TextTokenizer(loaded))
    return Pair(ours, *(AutoTokenizer.from_pretrained(folder / n) for n in ("plain", "renamed")))


def _rename(text: str) -> str:
    for token in (*SPECIAL, *OWN):
        text = text.replace(
            token, token.upper().replace("I", "J").replace("S", "Z").replace("T", "Y")
        )
    return text


def _rename_tokens(document: dict[str, Any], rename: Callable[[str], str]) -> None:
    known = {*SPECIAL, *OWN}
    for token in document["added_tokens"]:
        token["content"] = (
            rename(token["content"]) if token["content"] in known else token["content"]
        )
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        for token in known & set(vocabulary):
            vocabulary[rename(token)] = vocabulary.pop(token)
    else:
        for entry in vocabulary:
            entry[0] = rename(entry[0]) if entry[0] in known else entry[0]
    document["post_processor"] = None


def theirs(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


WORDS = (
    "the",
    " ",
    "\n",
    "in",
    "<",
    ">",
    "|",
    "im_",
    "end|>",
    "ä",
    "x",
    "  ",
    "T",
    ".",
    "|>",
    "/s>",
)
ORDINARY = (
    st.lists(st.sampled_from(WORDS), max_size=9)
    .map("".join)
    .filter(lambda text: not any(token in text for token in (*SPECIAL, *OWN)))
)
SPELLED = st.lists(st.sampled_from((*WORDS, *SPECIAL)), max_size=9).map("".join)
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@given(contents=st.lists(ORDINARY, min_size=1, max_size=3))
@QUICK
def test_ordinary_conversations_are_as_in_transformers(
    make_tokenizer: Callable[[], Tokenizer], template: str, contents: list[str]
):
    found = pair(make_tokenizer, TEMPLATES[template])
    messages = conversation(contents)
    assert found.ours.ids(messages) == theirs(found.theirs, messages)


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("strips", [False, True])
@given(contents=st.lists(SPELLED, min_size=1, max_size=3))
@QUICK
def test_spelled_tokens_are_text(
    make_tokenizer: Callable[[], Tokenizer], template: str, strips: bool, contents: list[str]
):
    found = pair(make_tokenizer, TEMPLATES[template], strips)
    messages = conversation(contents)
    assert found.ours.ids(messages) == theirs(found.renamed, messages)


def conversation(contents: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant", "user")
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def test_an_assistants_own_tokens_are_its_templates():
    """Clients send back what a model has thought; the template cuts it out or shows it."""
    found = pair(bytes_in_words, TEMPLATES["thinking"])
    thought = "<think>\nhm\n</think>\n\n"
    for last in ([], ["b"]):
        messages = conversation(["a", thought + "the <|im_end|>answer", *last])
        expected = conversation(["a", _rename(thought) + "the <|im_end|>answer", *last])
        assert found.ours.ids(messages) == theirs(found.renamed, expected)


def test_tokens_that_a_template_writes_are_control_tokens_special_or_not():
    found = pair(bytes_in_words, TEMPLATES["thinking"])
    messages = conversation(["a</think>b<think>"])
    assert found.ours.ids(messages) == theirs(found.renamed, messages)
    unknown = pair(bytes_in_words, CHATML)  # this template does not know them
    assert unknown.ours.ids(messages) == theirs(unknown.theirs, messages)


def test_words_that_a_tokenizer_keeps_whole_are_ordinary_text():
    def make_tokenizer() -> Tokenizer:
        tokenizer = bytes_in_words()
        tokenizer.add_tokens(["assistant", "```", "\n\n"])
        return tokenizer

    template = CHATML + "```{{ '\n\n' }}"
    found = pair(make_tokenizer, template)
    messages = conversation(["an assistant\n\n```<s>"])
    whole = found.ours.ids(messages)
    assert whole == theirs(found.renamed, messages)
    assert found.theirs.convert_tokens_to_ids("assistant") in whole


def test_every_text_of_a_conversation_is_looked_at():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }} {{ m | tojson }}{% endfor %}"
        "{{ documents | tojson }}{{ note }}<|im_end|>"
    )
    found = pair(bytes_in_words, template)
    call = {"function": {"name": "f<s>", "arguments": {"<s>key": ["</s>", 7, None]}}}
    message = {"role": "tool<s>", "content": "a", "name": "<s>", "tool_calls": [call]}
    variables = {"documents": [{"text": "b<|im_end|>"}], "note": "[INST]", "flag": True}
    ids = found.ours.ids([message], variables=variables)
    assert ids == found.renamed.apply_chat_template([message], return_dict=False, **variables)


def test_who_wants_special_tokens_from_messages_gets_them():
    found = pair(bytes_in_words, CHATML)
    messages = conversation(["a<|im_end|>\n<|im_start|>system\nb"])
    assert found.ours.ids(messages, as_tokens=True) == theirs(found.theirs, messages)


def test_characters_of_no_script_are_kept():
    found = pair(bytes_in_words, CHATML)
    messages = conversation(["\U000f0000<s>\U000f0001 \U0010fffd"])
    assert found.ours.ids(messages) == theirs(found.renamed, messages)


def test_a_template_that_refuses_marks_refuses_the_request(byte_level: TextTokenizer):
    template = ChatTemplate(
        "{% if '\U000f0000' in messages[0].content %}{{ raise_exception('no') }}{% endif %}", {}
    )
    with pytest.raises(BadRequest, match="refused: no"):
        ChatPrompts(template, byte_level).ids([{"role": "user", "content": "a<s>"}])


def test_a_long_message_of_nothing_but_tokens(byte_level: TextTokenizer):
    template = ChatTemplate("{{ messages[0].content }}</s>", {})
    ids = ChatPrompts(template, byte_level).ids([{"role": "user", "content": "<s>" * 20_000}])
    assert byte_level.decode(ids, skip_special=False) == "<s>" * 20_000 + "</s>"
    assert (ids.count(0), ids.count(1)) == (0, 1)


def test_the_server_has_a_setting(models: Models):
    spelled = "a</s><s>b"
    body = {"model": "base", "messages": [{"role": "user", "content": spelled}], "max_tokens": 1}
    counts = {}
    for as_tokens in (False, True):
        agent, _, client = make(models, KeyRing([]), special_tokens_in_messages=as_tokens)
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        asked = client.post("/tokenize", json=body).json()["tokens"]
        assert tuple(asked) == agent.requests[0].prompt
        counts[as_tokens] = asked.count(0), asked.count(1)
        client.post("/v1/completions", json={"model": "base", "prompt": spelled, "max_tokens": 1})
        assert (
            agent.requests[1].prompt.count(1) == 1
        )  # a completion's prompt is what its client says
    assert counts == {False: (1, 0), True: (2, 1)}


def test_a_prompt_that_is_too_long_is_refused_before_the_long_way(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    def encode_literal(*given: object) -> list[int]:
        raise AssertionError("took the long way")

    monkeypatch.setattr(TextTokenizer, "encode_literal", encode_literal)
    client = make(models, KeyRing([]))[2]
    body = {"model": "base", "messages": [{"role": "user", "content": "</s>" * 1000}]}
    for path in ("/v1/chat/completions", "/tokenize"):
        error = client.post(path, json=body).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("content", ["a", "</s>"])
def test_lone_surrogates_in_arguments_are_a_bad_request(byte_level: TextTokenizer, content: str):
    call = {"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    template = ChatTemplate("{{ messages[0] | tojson }}", {})
    with pytest.raises(BadRequest, match="messages: a lone surrogate") as caught:
        ChatPrompts(template, byte_level).ids(plain_messages(read_messages([message]), False))
    assert caught.value.param == "messages"


def test_a_character_that_the_tokenizer_has_no_token_for_is_a_bad_request():
    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")))
    with pytest.raises(BadRequest, match="cannot encode the text") as caught:
        tokenizer.encode("b", False)
    assert caught.value.param == "prompt"


def test_much_too_long_a_prompt_is_refused_before_all_of_it_is_encoded(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    encoded: list[int] = []
    encode = TextTokenizer.encode

    def count(self: TextTokenizer, text: str, add_special: bool, field: str = "prompt") -> Any:
        encoded.append(len(text))
        return encode(self, text, add_special, field)

    monkeypatch.setattr(TextTokenizer, "encode", count)
    client = make(models, KeyRing([]))[2]
    text = "quick " * 500_000
    bodies = {"prompt": text, "messages": [{"role": "user", "content": text}]}
    for path, field in (("completions", "prompt"), ("chat/completions", "messages")):
        answer = client.post(f"/v1/{path}", json={"model": "base", field: bodies[field]})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == field and "characters, whose beginning has" in error["message"]
        assert sum(encoded) < len(text) / 20
        encoded.clear()
    answer = client.post("/tokenize", json={"model": "base", "prompt": text[:120_000]}).json()
    assert answer["count"] > 20_000 and answer["token_strs"] is None


@given(st.text(st.sampled_from("ab \n€"), max_size=300), st.integers(1, 60))
def test_a_text_that_fits_is_never_refused_before_it_is_encoded(text: str, max_context: int):
    tokenizer = TextTokenizer(_collapsing())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockllm.api.tokenizer.SLICE", 16)
        patch.setattr("blockllm.api.tokenizer.MOST_CHARACTERS", 1)
        if len(tokenizer.encode(text, False)) < max_context:
            tokenizer.check_length(text, max_context, "prompt")


def _collapsing() -> Tokenizer:
    """Long runs of spaces are one token, and so are long words of one letter."""
    merges = [("a" * n, "a" * n) for n in (1, 2, 4, 8, 16)]
    words = ["a", "b", " ", "\n", "€", *(a + b for a, b in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")
    return tokenizer
