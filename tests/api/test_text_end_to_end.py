"""The same ids as AutoTokenizer on every way from text to tokens, and an answer that ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from blockllm import LLM, Sampling
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora, make_tokenizer

VOCABULARY = 300
TEXT = "def add(a, b): return a + b<|im_end|>\n" * 2
MESSAGES = [{"role": "user", "content": "What is the sum of one and two?"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose training left truncation and padding in tokenizer.json, and a token in
    tokenizer_config.json only; and its zoo."""
    path = tmp_path_factory.mktemp("text")
    model = make_checkpoint(path / "model", vocab_size=VOCABULARY, num_hidden_layers=2)
    make_tokenizer(model, VOCABULARY, TEMPLATE)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64, pad_token="<pad>")
    tokenizer.save(str(model / "tokenizer.json"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    token = {"content": "<|im_end|>", "special": True, "normalized": False}
    settings["added_tokens_decoder"] = {str(tokenizer.get_vocab_size()): token}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    Zoo(path / "zoo").add("model", model)
    return path


def test_every_way_from_text_to_tokens(folder: Path):
    import transformers

    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder / "model")
    plain, chat = theirs(TEXT)["input_ids"], theirs.apply_chat_template(MESSAGES, return_dict=False)
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    assert len(plain) > 8 and plain.count(end) == 2 and chat.count(end) == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = model.generate(torch.tensor([plain]), **greedy)[0, len(plain) :].tolist()
    with LLM("model", zoo=str(folder / "zoo"), threads=1, memory="100M") as llm:
        assert llm.encode(TEXT) == plain
        assert llm.chat_prompt(MESSAGES) == chat
        (answer,) = llm.generate(TEXT, sampling=Sampling(max_tokens=12, temperature=0))
        assert answer.token_ids == tokens
    (window,) = windows(Zoo(folder / "zoo"), ["model"], TEXT.encode(), 1000)
    assert window == plain


def test_an_answer_ends_at_what_only_the_adapters_files_call_an_end(folder: Path, tmp_path: Path):
    sampling = Sampling(max_tokens=12, temperature=0)
    adapter = make_lora(folder / "model", tmp_path / "adapter")
    zoo = Zoo(folder / "zoo")
    zoo.add("endless", adapter, base="model")
    with LLM("endless", zoo=str(folder / "zoo"), threads=1, memory="100M") as llm:
        tokens = llm.generate("The", sampling=sampling)[0].token_ids
    last = tokens[3]
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": last}))
    zoo.add("ending", adapter, base="model")
    with LLM("ending", zoo=str(folder / "zoo"), threads=1, memory="100M") as llm:
        (answer,) = llm.generate("The", sampling=sampling)
    assert answer.token_ids == tokens[: tokens.index(last) + 1]
    assert answer.finish_reason == "stop"
