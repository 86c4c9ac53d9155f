"""A zoo without weights for tests of the front end: two models, real tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blockllm.api.conversation import read_messages
from blockllm.api.models import ServedModel
from blockllm.api.text_calls import TASKS, chat_call, encode_call
from blockllm.core import Chain, Measurement, ModelCard
from blockllm.workers.inline import InProcess

CORPUS = ["The quick brown fox jumps over the lazy dog.", "def add(a, b):\n    return a + b\n"] * 20
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Trained on the corpus; every byte has a token; adds <s> as Llama does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def sentencepiece_like_tokenizer() -> Tokenizer:
    """Spaces as ▁ and byte fallback, as in Llama 2."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    words = ["▁t", "▁th", "▁the", "he", "in"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces + words))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e"), ("i", "n")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def encode(model: ServedModel, text: str, add_special: bool) -> list[int]:
    """What a worker makes of a text."""
    return InProcess(TASKS).call(encode_call(model.content, text, add_special, "prompt"))


def chat_ids(model: ServedModel, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """What a worker makes of a conversation."""
    return InProcess(TASKS).call(chat_call(model.content, read_messages(messages), {}))


class FakeZoo:
    """`base` has a chat template, its adapter `tuned` uses it, `plain` has none."""

    def __init__(self, folder: Path, max_context: int = 512) -> None:
        self.folder = folder
        self.max_context = max_context
        if not folder.exists():
            folder.mkdir()
            byte_level_tokenizer().save(str(folder / "tokenizer.json"))
            config = {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def cards(self) -> list[ModelCard]:
        context = self.max_context
        loss = Measurement("plain", "base", 10.1, 10.0, 0.01, 0.99, 100, 64, "t", 1.0, {})
        return [
            ModelCard("base", "full", "llama", total_bytes=100, own_bytes=40, shared_bytes=60,
                      max_context=context, format="float32"),
            ModelCard("tuned", "lora", "llama", parent="base", root="base", max_context=context,
                      format="float32"),
            ModelCard("plain", "full", "llama", max_context=context, format="int8", exact=False,
                      loss=(loss,)),
        ]  # fmt: skip

    def chains(self, names: Sequence[str]) -> dict[str, Chain]:
        return {name: Chain(name, (), self.max_context) for name in names}

    def asset(self, name: str, file: str) -> Path | None:
        path = self.folder / file
        if name == "plain" and file != "tokenizer.json":
            return None
        return path if path.exists() else None
