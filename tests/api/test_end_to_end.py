"""From checkpoints on disk to streamed tokens: zoo, engine, server and client, nothing faked."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

pytest.importorskip("blockllm.engine", reason="the engine is not here yet", exc_type=ImportError)
pytest.importorskip("blockllm.zoo", reason="the zoo is not here yet", exc_type=ImportError)

import torch

from blockllm import LLM, Sampling
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora, make_tokenizer

VOCABULARY = 300
NUM_TOKENS = 48
PROMPT = "def add(a, b):"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a base, a fine-tune with equal lower layers and an adapter, and their zoo."""
    path = tmp_path_factory.mktemp("family")
    base = make_checkpoint(path / "base", vocab_size=VOCABULARY)
    make_tokenizer(base, VOCABULARY)
    make_checkpoint(
        path / "tuned", seed=1, vocab_size=VOCABULARY, copy_layers_from=base, copied_layers=(0, 1)
    )
    make_tokenizer(path / "tuned", VOCABULARY)
    make_lora(base, path / "adapter")
    zoo = Zoo(path / "zoo")
    zoo.add("base", base)
    zoo.add("tuned", path / "tuned")
    zoo.add("adapter", path / "adapter", base="base")
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    """Greedy tokens of the reference implementation, after PROMPT."""
    import peft
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    tokens = {}
    for name in ("base", "tuned", "adapter"):
        source = folder / ("base" if name == "adapter" else name)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        if name == "adapter":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft uses an old alias
                model = peft.PeftModel.from_pretrained(model, folder / name)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens[name] = output[0, ids.shape[1] :].tolist()
    return tokens


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    command = [sys.executable, "-m", "blockllm", "serve", "--zoo", str(folder / "zoo")]
    command += ["--port", "0", "--device", "cpu", "--memory", "64M", "--max-sequences", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        url = next((line.split()[-1] for line in lines if " ready on " in line), None)
        assert url is not None, "the server did not start"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("model", ["base", "tuned", "adapter"])
@pytest.mark.parametrize("stream", [False, True])
def test_served_tokens_are_the_references(
    client: openai.OpenAI, expected: dict[str, list[int]], model: str, stream: bool
):
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=NUM_TOKENS,
        temperature=0,
        stream=stream,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    chunks = answer if stream else [answer]
    ids = [token for chunk in chunks for token in chunk.choices[0].token_ids]
    assert ids == expected[model]


def test_many_choices_of_all_models(client: openai.OpenAI, expected: dict[str, list[int]]):
    for model in ("base", "tuned", "adapter"):
        answer = client.completions.create(
            model=model,
            prompt=[PROMPT, PROMPT],
            n=2,
            max_tokens=8,
            temperature=0,
            logprobs=2,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        assert len(answer.choices) == 4
        for choice in answer.choices:
            assert choice.token_ids == expected[model][:8]  # type: ignore[attr-defined]
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            assert max(choice.logprobs.token_logprobs) <= 0


def test_chat_and_cached_prefixes(client: openai.OpenAI):
    long = [{"role": "user", "content": "hello " * 10}]
    answers = [
        client.chat.completions.create(model="base", messages=long, max_tokens=4, temperature=0)
        for _ in range(2)
    ]
    first, second = (answer.usage for answer in answers)
    assert first is not None and second is not None
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens >= 16
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    whole = client.chat.completions.create(model="base", messages=MESSAGES, seed=1)
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_listed_bytes_show_the_sharing(client: openai.OpenAI):
    listed = {model.id: model for model in client.models.list()}
    assert listed["adapter"].parent == "base"
    assert listed["tuned"].shared_bytes > 0
    assert listed["tuned"].own_bytes + listed["tuned"].shared_bytes == listed["tuned"].total_bytes


def test_the_engines_own_errors_reach_the_client(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="token id 300"):
        client.completions.create(model="base", prompt=[VOCABULARY])
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="base", prompt=[1] * 120, max_tokens=20)
    assert long.value.code == "context_length_exceeded"


def test_in_process_use(folder: Path, expected: dict[str, list[int]]):
    sampling = Sampling(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    with LLM(zoo=str(folder / "zoo"), device="cpu", memory="64M", max_sequences=8) as llm:
        for model, tokens in expected.items():
            (answer,) = llm.generate(PROMPT, model, sampling)
            assert answer.token_ids == tokens
        assert llm.stats.weight_bytes < llm.stats.weight_bytes_unshared
