"""Whatever a file says, parsing it ends with a value or a CheckpointError."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockllm.errors import CheckpointError
from blockllm.zoo.adapters.lora_config import read_lora_config
from blockllm.zoo.families import choose_family
from blockllm.zoo.header import Entry, read_header
from blockllm.zoo.settings_reader import SettingsReader, read_json
from tests.makers import SHAPE

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["linear", "dynamic", "yarn", "llama3", "default", "silu", "F32"]),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=8,
)


def parse(data: bytes) -> dict[str, Entry]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_header(file.fileno(), "fuzz")


def with_length(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


@given(st.binary(max_size=64) | st.binary(max_size=64).map(with_length))
@example(b"")
def test_header_of_random_bytes(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        parse(data)


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=4), TENSOR | JSON, max_size=4), st.binary(max_size=40))
def test_header_of_random_json(document: dict[str, Any], body: bytes) -> None:
    data = with_length(json.dumps(document).encode(), body)
    with contextlib.suppress(CheckpointError):
        entries = parse(data)
        covered = sorted((entry.offset, entry.offset + entry.nbytes) for entry in entries.values())
        position = len(data) - len(body)
        for start, end in covered:
            assert start == position
            position = end
        assert position == len(data)


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_header_with_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(with_length(json.dumps(HEADER).encode(), bytes(32)))
    for position, value in flips:
        data[position % len(data)] = value
    with contextlib.suppress(CheckpointError):
        assert sum(entry.nbytes for entry in parse(bytes(data)).values()) <= 32


KEYS = [
    *SHAPE,
    *("head_dim", "rms_norm_eps", "hidden_act", "rope_theta", "rope_scaling", "rope_parameters"),
    *("attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window", "layer_types"),
    *("use_sliding_window", "max_window_layers", "partial_rotary_factor", "model_type"),
    *("architectures", "quantization_config", "original_max_position_embeddings"),
]
ROPE_KEYS = ["type", "rope_type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor"]
ROPE_KEYS += ["beta_fast", "truncate", "mscale", "attention_factor"]
VALUE = JSON | st.dictionaries(st.sampled_from(ROPE_KEYS), JSON)


@given(
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=4),
)
def test_config(family: str, changes: dict[str, Any]) -> None:
    reader = SettingsReader({**SHAPE, "model_type": family, **changes}, "config.json")
    with contextlib.suppress(CheckpointError):
        model = choose_family(reader).plan(reader)
        assert 3 <= len(model.layers) <= 1026
        assert model.max_context > 0


ADAPTER_KEYS = ["r", "lora_alpha", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern"]
ADAPTER_KEYS += ["peft_type", "init_lora_weights", "use_dora", "base_model_name_or_path"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(st.dictionaries(st.sampled_from(ADAPTER_KEYS), JSON, max_size=4))
def test_lora_config(changes: dict[str, Any]) -> None:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **changes}
    with contextlib.suppress(CheckpointError):
        config = read_lora_config(SettingsReader(values, "adapter_config.json"))
        assert config.scale_of("model.layers.0.self_attn.q_proj") >= 0


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_json_files(folder: Path, data: bytes) -> None:
    (folder / "any.json").write_bytes(data)
    with contextlib.suppress(CheckpointError):
        assert isinstance(read_json(folder / "any.json"), dict)
