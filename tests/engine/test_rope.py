"""Frequencies equal transformers' own, for every scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockllm.core import Rope
from blockllm.engine.attention.rope import RotaryEmbedding

SCALINGS: dict[str, tuple[Rope, dict[str, Any]]] = {
    "default": (Rope(5e5), {"rope_type": "default"}),
    "linear": (Rope(5e5, "linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        Rope(5e5, "yarn", 8.0, 64),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    ),
    "llama3": (
        Rope(5e5, "llama3", 8.0, 64),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_the_reference(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope, parameters = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 5e5, **parameters},
    )
    positions = torch.arange(300)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    table = RotaryEmbedding(rope, 32, torch.device("cpu"), torch.float32).table(
        positions, positions + 1
    )
    torch.testing.assert_close(table.cos[:, 0], cos[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(table.sin[:, 0], sin[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_kept_table_holds_what_single_rows_give(name: str) -> None:
    rope, _ = SCALINGS[name]
    rotary = RotaryEmbedding(rope, 32, torch.device("cpu"), torch.float32)
    for count in (1, 1024, 1025, 3000, 5):  # it grows and stays
        known = rotary.by_position(count)
        if rope.kind == "dynamic":
            assert known is None
            continue
        assert known is not None
        at = torch.tensor([0, count - 1, count // 2])
        rows = rotary.table(at, at)
        part = known._replace(at=at).part(slice(1, 3))
        assert part.at is not None
        assert torch.equal(part.cos[part.at], rows.cos[1:])
        assert torch.equal(part.sin[part.at], rows.sin[1:])
