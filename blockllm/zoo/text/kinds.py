"""Kinds of tokenizers that transformers builds anew from their vocabulary, whatever else
tokenizer.json says; all others it takes as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from blockllm.errors import CheckpointError
from blockllm.zoo.text.files import SETTINGS

LLAMA = "LlamaTokenizer"
QWEN2 = "Qwen2Tokenizer"
# named tokens that each assumes where the settings do not name them
ASSUMED: dict[str, dict[str, str]] = {
    LLAMA: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    QWEN2: dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Kind(NamedTuple):
    """What tokenizer_config.json says of the kind. `name` is empty where tokenizer.json counts."""

    name: str
    legacy: bool
    add_prefix_space: bool | None
    split_special: bool  # special tokens are text like any other


def read_kind(settings: Mapping[str, Any], family: str, is_byte_level: bool) -> Kind:
    """The kind that AutoTokenizer chooses. It chooses a Qwen2Tokenizer for every qwen2 model; here
    the files have to say so, since other tokenizers become garbage by it.
    """
    for key, type_ in (("tokenizer_class", str), ("legacy", bool), ("add_prefix_space", bool)):
        if not isinstance(settings.get(key), type_ | None):
            raise CheckpointError(f"{SETTINGS}: {key}: expected a {type_.__name__}")
    name = settings.get("tokenizer_class", "").removesuffix("Fast")
    if family == "mistral" or (name == LLAMA and is_byte_level) or name not in ASSUMED:
        name = ""
    return Kind(
        name,
        settings.get("legacy", False),
        settings.get("add_prefix_space"),
        settings.get("split_special_tokens") is True,
    )


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's pieces stand for bytes, as GPT-2's do."""
    parts = (tokenizer.pre_tokenizer, tokenizer.decoder)
    return any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts)


def rebuild(tokenizer: Tokenizer, kind: Kind) -> None:
    """Replace the pipeline around the vocabulary by the kind's."""
    if not isinstance(tokenizer.model, BPE):
        return
    if kind.name == LLAMA:
        _make_llama(tokenizer, kind.add_prefix_space is not False, kind.legacy)
    elif kind.name == QWEN2:
        _make_qwen2(tokenizer, bool(kind.add_prefix_space))


def _make_llama(tokenizer: Tokenizer, prefix: bool, legacy: bool) -> None:
    model = tokenizer.model
    model.unk_token, model.dropout = None, None
    model.fuse_unk = model.byte_fallback = True
    scheme = ("always" if legacy else "first") if prefix else "never"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*parts, *strip])


def _make_qwen2(tokenizer: Tokenizer, prefix: bool) -> None:
    model = tokenizer.model
    model.unk_token, model.dropout = None, None
    model.fuse_unk = model.byte_fallback = False
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
    tokenizer.decoder = decoders.ByteLevel()
