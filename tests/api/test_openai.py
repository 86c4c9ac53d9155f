"""The real `openai` client against a real server process."""

from __future__ import annotations

import asyncio

import openai
import pytest

from blockllm.api.models import Models
from tests.api.family import chat_ids, encode
from tests.api.serving import RunningServer
from tests.cluster.fake_engine import ERROR

HELLO = [{"role": "user", "content": "The quick brown fox"}]


@pytest.fixture(scope="module")
def client(server: RunningServer):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def rendered(models: Models) -> list[int]:
    return chat_ids(models.find("base"), HELLO)


def test_chat(client: openai.OpenAI, models: Models):
    ids = rendered(models)
    answer = client.chat.completions.create(model="base", messages=HELLO, max_tokens=len(ids))
    assert answer.object == "chat.completion"
    assert answer.model == "base"
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("fp_")
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "The quick brown fox\n"
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == len(ids)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_conversation_as_agents_send_it(client: openai.OpenAI):
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "The quick"}]},
        {"role": "user", "content": "brown", "name": "u"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "content": "fox", "tool_call_id": "c"},
    ]  # fmt: skip
    answer = client.chat.completions.create(
        model="base",
        messages=messages,
        metadata={"a": "b"},
        store=True,
        parallel_tool_calls=False,
        reasoning_effort="low",
        service_tier="auto",
        user="u",
        tools=[{"type": "function", "function": {"name": "weather"}}],
        tool_choice="none",
        response_format={"type": "text"},
        extra_body={"skip_special_tokens": False, "max_tokens": None},
        max_completion_tokens=60,
    )
    shown = "<s><|system|>The quick\n<|user|>brown\n<|assistant|>\n<|tool|>fox\n<|assistant|>"
    assert (answer.choices[0].message.content or "").startswith(shown)


def test_chat_stream_equals_chat(client: openai.OpenAI):
    fields = {"model": "base", "messages": HELLO, "max_completion_tokens": 9, "n": 2, "seed": 1}
    whole = client.chat.completions.create(**fields)
    texts, roles, reasons, usages = ["", ""], [], [], []
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 2
    assert reasons == ["length"] * 2
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] == whole.usage


def test_stop_strings_and_ids(client: openai.OpenAI, models: Models):
    answer = client.chat.completions.create(model="base", messages=HELLO, stop="k bro")
    assert answer.choices[0].message.content == "The quic"
    assert answer.choices[0].finish_reason == "stop"
    token = encode(models.find("base"), " brown", False)[0]
    extra = {"stop_token_ids": [token], "return_token_ids": True}
    answer = client.chat.completions.create(model="base", messages=HELLO, extra_body=extra)
    assert answer.choices[0].message.content == "The quick"
    assert answer.choices[0].stop_reason == token  # type: ignore[attr-defined]
    assert answer.choices[0].token_ids[-1] == token  # type: ignore[attr-defined]


def test_chat_logprobs(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="base", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.token for entry in logprobs.content][2:] == ["The", " quick"]
    assert logprobs.content[2].bytes == list(b"The")
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2] * 4
    assert logprobs.content[0].logprob == -0.5


@pytest.mark.parametrize("prompt", ["The quick", ["The", "quick fox"], [5, 6, 7], [[5, 6], [7]]])
def test_completion_prompts_of_every_kind(client: openai.OpenAI, models: Models, prompt):
    answer = client.completions.create(model="plain", prompt=prompt, max_tokens=3, n=2)
    num_prompts = len(prompt) if isinstance(prompt[0], list) or len(prompt) == 2 else 1
    assert [choice.index for choice in answer.choices] == list(range(2 * num_prompts))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * 2 * num_prompts
    if prompt == "The quick":  # the tokenizer adds <s>, which is not shown
        assert answer.choices[0].text == "The quick"
        assert answer.usage.prompt_tokens == 3


def test_completion_defaults_to_16_tokens(client: openai.OpenAI):
    answer = client.completions.create(model="base", prompt="a")
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_completion_stream_with_ids_and_logprobs(client: openai.OpenAI, models: Models):
    fields = {"model": "base", "prompt": "The quick brown", "max_tokens": 6, "logprobs": 1}
    whole = client.completions.create(**fields)
    ids, text, offsets, prompts = [], "", [], []
    extra = {"return_token_ids": True}
    for chunk in client.completions.create(**fields, stream=True, extra_body=extra):
        for choice in chunk.choices:
            ids += choice.token_ids  # type: ignore[attr-defined]
            prompts += getattr(choice, "prompt_token_ids", None) or []
            text += choice.text
            offsets += choice.logprobs.text_offset
    assert prompts == encode(models.find("base"), "The quick brown", True)
    assert ids == (prompts * 2)[:6]
    assert text == whole.choices[0].text
    assert offsets == whole.choices[0].logprobs.text_offset
    assert whole.choices[0].logprobs.tokens[:3] == ["<s>", "The", " quick"]
    assert len(whole.choices[0].logprobs.top_logprobs[0]) == 1


def test_models(client: openai.OpenAI):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["base", "tuned", "plain"]
    tuned = client.models.retrieve("tuned")
    assert (tuned.object, tuned.owned_by) == ("model", "blockllm")
    assert (tuned.parent, tuned.root, tuned.kind) == ("base", "base", "lora")
    base = listed["base"]
    assert (base.own_bytes, base.shared_bytes, base.max_model_len) == (40, 60, 512)
    assert (base.has_chat_template, listed["plain"].has_chat_template) == (True, False)


def test_models_say_what_they_lost(client: openai.OpenAI):
    base, _, plain = (model.model_dump() for model in client.models.list())
    assert (base["format"], base["exact"], base["loss"]) == ("float32", True, [])
    assert (plain["format"], plain["exact"]) == ("int8", False)
    (loss,) = plain["loss"]
    assert (loss["reference"], loss["perplexity"], loss["kl"]) == ("base", 10.1, 0.01)
    answer = client.completions.create(model="plain", prompt="The", max_tokens=1)
    assert (answer.system_fingerprint or "").endswith("-int8")


def test_client_errors_have_openais_classes(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nix", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nix")
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="plain", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="base", prompt="a b c", max_tokens=10_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError, match="refused"):
        client.completions.create(model="base", prompt="a", extra_body={"min_p": ERROR})


def test_an_error_before_the_first_byte_of_a_stream_has_a_status(client: openai.OpenAI):
    with pytest.raises(openai.InternalServerError, match="refused"):
        client.completions.create(
            model="base", prompt="a", stream=True, extra_body={"min_p": ERROR}
        )
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model="base", prompt=[2**20], stream=True)


def test_many_models_at_once_with_the_async_client(server: RunningServer):
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def one(model: str, text: str) -> str:
                shown = ""
                stream = await client.completions.create(
                    model=model, prompt=text, max_tokens=40, stream=True
                )
                async for chunk in stream:
                    shown += chunk.choices[0].text
                return shown

            models = ["base", "tuned", "plain"]
            asks = [one(models[i % 3], f"The lazy dog {i} ") for i in range(24)]
            return await asyncio.gather(*asks)

    for index, text in enumerate(asyncio.run(main())):
        assert text.startswith(f"The lazy dog {index} The lazy dog {index} ")
