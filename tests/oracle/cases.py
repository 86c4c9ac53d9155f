"""The models of the oracle matrix: every family, odd shapes, every rope scaling in use."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    family: str
    config: dict[str, Any]


def _heads(heads: int, kv_heads: int, size: int, **more: Any) -> dict[str, Any]:
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        **more,
    }


def _rope(**parameters: Any) -> dict[str, Any]:
    return _heads(4, 2, 16, rope_parameters={"rope_theta": 10000.0, **parameters})


ORIGINAL = 64  # original length of the scaled models; every run goes far beyond it

CASES: dict[str, Case] = {
    "llama, heads of 64, MHA, tied": Case(
        "llama", _heads(3, 3, 64, vocab_size=97, tie_word_embeddings=True)
    ),
    "llama, heads of 80, groups of 3, biases": Case(
        "llama", _heads(6, 2, 80, vocab_size=131, attention_bias=True, mlp_bias=True)
    ),
    "llama, heads of 96, groups of 7, one layer": Case(
        "llama", _heads(7, 1, 96, vocab_size=103, num_hidden_layers=1, hidden_size=56)
    ),
    "llama, heads of 128, five layers": Case("llama", _heads(2, 1, 128, num_hidden_layers=5)),
    "llama, linear rope": Case("llama", _rope(rope_type="linear", factor=4.0)),
    "llama, dynamic rope": Case(
        "llama", _rope(rope_type="dynamic", factor=8.0) | {"max_position_embeddings": ORIGINAL}
    ),
    "llama, yarn rope": Case(
        "llama",
        _rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=ORIGINAL),
    ),
    "llama, llama3 rope": Case(
        "llama",
        _rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=ORIGINAL,
        ),
    ),
    "mistral, window shorter than prompt": Case(
        "mistral", _heads(6, 2, 64, sliding_window=24, vocab_size=111)
    ),
    "mistral, no window": Case("mistral", _heads(4, 4, 80, sliding_window=None)),
    "mistral, windows in layers by type": Case(
        "mistral",
        _heads(
            4,
            2,
            16,
            num_hidden_layers=3,
            sliding_window=20,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "qwen2, biases, tied, groups of 7": Case(
        "qwen2", _heads(7, 1, 64, head_dim=None, hidden_size=448, tie_word_embeddings=True)
    ),
    "qwen2, window in upper layers": Case(
        "qwen2",
        _heads(
            4,
            2,
            64,
            head_dim=None,
            hidden_size=256,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=1,
        ),
    ),
    "qwen3, heads of 128, odd vocabulary": Case("qwen3", _heads(4, 2, 128, vocab_size=149)),
    "qwen3, yarn rope, tied": Case(
        "qwen3",
        _rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=ORIGINAL)
        | {"tie_word_embeddings": True},
    ),
}
