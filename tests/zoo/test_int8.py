"""The int8 format: bytes equal to a plain twin's, shared, refused where they cannot be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blockllm.core import Layer, Measurement
from blockllm.errors import AdapterMismatch, CheckpointError, UnknownModel, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.checkpoint import WeightFiles
from blockllm.zoo.int8 import Int8Part, round_weight
from tests.makers import make_checkpoint, make_lora
from tests.zoo.conftest import contents, read_tensor, saved_tensors
from tests.zoo.test_memory import MB, make_sparse

LINEARS = {f"self_attn.{x}_proj" for x in "qkvo"} | {
    f"mlp.{x}_proj" for x in ("gate", "up", "down")
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def twin(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, as the format is written down."""
    values = weight.float().numpy()
    rounded = np.empty(values.shape, np.int8)
    scales = np.empty(len(values), np.float32)
    for index, row in enumerate(values):
        largest = np.float32(max(abs(row.min()), abs(row.max())))
        scales[index] = largest / np.float32(127) or np.float32(1)
        for column, value in enumerate(row):
            rounded[index, column] = min(127, max(-127, round(float(value / scales[index]))))
    return rounded, scales


def layers(zoo: Zoo, name: str) -> list[Layer]:
    return [layer for entry in zoo.chain(name).entries for layer in entry.block.layers]


def check_rounded(zoo: Zoo, layer: Layer, module: str, weight: torch.Tensor) -> None:
    """The layer's int8 tensors of `module` are the twin's of `weight`."""
    found, scale = layer.tensors[f"{module}weight"], layer.tensors[f"{module}scale"]
    rounded, scales = twin(weight)
    assert (found.dtype, found.shape) == ("I8", weight.shape)
    assert (scale.dtype, scale.shape) == ("F32", weight.shape[:1])
    assert read_tensor(zoo, found) == rounded.tobytes()
    assert read_tensor(zoo, scale) == scales.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_layers_equal_the_twins(zoo: Zoo, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = make_checkpoint(tmp_path / "model", family, dtype=dtype, num_hidden_layers=2)
    report = zoo.add("model", source, format="int8")
    saved, raw = load_file(source / "model.safetensors"), saved_tensors(source)
    embed, *middle, head = layers(zoo, "model")
    assert read_tensor(zoo, embed.tensors["weight"]) == raw["model.embed_tokens.weight"]
    check_rounded(zoo, head, "", saved["lm_head.weight"])
    for index, layer in enumerate(middle):
        for module in LINEARS:
            check_rounded(zoo, layer, f"{module}.", saved[f"model.layers.{index}.{module}.weight"])
        kept = {name for name in layer.tensors if name.rpartition(".")[0] not in LINEARS}
        kept |= {name for name in layer.tensors if name.endswith(".bias")}
        for name in kept:
            assert read_tensor(zoo, layer.tensors[name]) == raw[f"model.layers.{index}.{name}"]
    card = zoo.card("model")
    assert (card.format, card.exact) == ("int8", False)
    assert card.dtype == str(dtype).removeprefix("torch.")
    assert card.total_bytes == report.total_bytes < sum(map(len, raw.values()))
    assert zoo.verify().is_sound


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_finite_row(tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "model.safetensors"
    weight = torch.tensor(rows)
    save_file({"w": weight}, path)
    with WeightFiles([path]) as files:
        parts = round_weight("w", files.tensors["w"])
        found = {name: b"".join(part.chunks()) for name, part in parts.items()}
    rounded = np.frombuffer(found["w"], np.int8).reshape(weight.shape)
    scale = np.frombuffer(found["wscale"], np.float32)
    assert (scale > 0).all()
    # half a step, and what fp32 division can be off by
    bound = scale[:, None].astype(np.float64) * (0.5 + 1e-4)
    limit = np.maximum(bound, np.finfo(np.float32).smallest_normal)
    assert (np.abs(rounded * scale[:, None].astype(np.float64) - weight.numpy()) <= limit).all()


def test_rows_longer_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 33)
    save_file({"w": weight.bfloat16()}, tmp_path / "w.safetensors")
    rounded, scales = twin(weight.bfloat16())
    for piece in (1, 66, 150, 1 << 20):
        monkeypatch.setattr("blockllm.zoo.int8._PIECE_BYTES", piece)
        with WeightFiles([tmp_path / "w.safetensors"]) as files:
            source = files.tensors["w"]
            assert b"".join(Int8Part(source, "weight").chunks()) == rounded.tobytes()
            assert b"".join(Int8Part(source, "scale").chunks()) == scales.tobytes()


def test_a_tied_head_parts_from_the_embedding(zoo: Zoo, tied: Path) -> None:
    zoo.add("model", tied, format="int8")
    table = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    embed, *_, head = layers(zoo, "model")
    assert embed.tensors["weight"].dtype == "F32"
    check_rounded(zoo, head, "", table)


def test_equal_layers_are_shared(zoo: Zoo, tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "wide", dtype=torch.bfloat16)
    sibling = make_checkpoint(
        tmp_path / "sibling", seed=1, copy_layers_from=wide, copied_layers=(0, 1),
        dtype=torch.bfloat16,
    )  # fmt: skip
    first = zoo.add("wide", wide, format="int8")
    assert zoo.add("again", wide, format="int8").stored_bytes == 0
    assert zoo.add("sibling", sibling, format="int8").num_shared_blocks == 3
    exact = zoo.add("exact", wide)  # embedding, norms and biases are the same tensors
    assert 0 < first.stored_bytes < exact.stored_bytes < exact.total_bytes
    zoo.remove("wide")
    zoo.remove("again")
    zoo.gc()
    assert zoo.verify().is_sound
    assert [card.format for card in zoo.cards()] == ["int8", "bfloat16"]


def test_adapter_on_an_int8_base(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    adapter = make_lora(llama, tmp_path / "adapter", modules_to_save=["lm_head"])
    zoo.add("base", llama, format="int8")
    zoo.add("adapter", adapter, base="base")
    card = zoo.card("adapter")
    assert (card.kind, card.format, card.exact, card.num_shared_blocks) == (
        "lora",
        "int8",
        False,
        2,
    )
    assert all(entry.delta for entry in zoo.chain("adapter").entries[1:-1])
    saved = load_file(adapter / "adapter_model.safetensors")
    check_rounded(zoo, layers(zoo, "adapter")[-1], "", saved["base_model.model.lm_head.weight"])
    assert layers(zoo, "adapter")[:-1] == layers(zoo, "base")[:-1]


def test_an_adapter_cannot_bring_scales(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    adapter = make_lora(llama, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.scale"
    save_file({**load_file(path), name: torch.ones(32)}, path)
    zoo.add("base", llama, format="int8")
    with pytest.raises(AdapterMismatch, match="no tensor"):
        zoo.add("adapter", adapter, base="base")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(zoo: Zoo, tmp_path: Path, value: float) -> None:
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, path)
    before = contents(tmp_path / "zoo")
    with pytest.raises(CheckpointError, match="not finite"):
        zoo.add("model", source, format="int8")
    assert contents(tmp_path / "zoo") == before
    zoo.add("model", source)  # as it is, it can be stored


def test_refusals(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    with pytest.raises(ZooError, match="format of its base"):
        zoo.add("a", make_lora(llama, tmp_path / "adapter"), base="base", format="int8")
    with pytest.raises(ZooError, match="expected int8"):
        zoo.add("a", llama, format="int3")  # type: ignore[arg-type]
    rounded = make_checkpoint(tmp_path / "rounded", num_hidden_layers=1)
    tensors = load_file(rounded / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, rounded / "model.safetensors")
    for format in (None, "int8"):
        with pytest.raises(ZooError, match="weights are quantised"):
            zoo.add("a", rounded, format=format)  # type: ignore[arg-type]


def test_peak_memory(tmp_path: Path) -> None:
    make_sparse(tmp_path / "model", num_layers=2)
    script = (
        "import re, sys; from blockllm.zoo import Zoo\n"
        "Zoo(sys.argv[1]).add('model', sys.argv[2], format='int8')\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "print(int(peak[1]) * 1024)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "zoo"), str(tmp_path / "model")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 120 * MB


def measurement(model: str, **values: object) -> Measurement:
    defaults = {
        "reference": "exact", "perplexity": 10.1, "reference_perplexity": 10.0, "kl": 0.01,
        "agreement": 0.99, "num_tokens": 100, "window": 64, "text": "t", "created": 1.0,
        "versions": {},
    }  # fmt: skip
    return Measurement(model=model, **{**defaults, **values})  # type: ignore[arg-type]


def test_measurements_are_kept_with_the_model(zoo: Zoo, llama: Path) -> None:
    zoo.add("model", llama, format="int8")
    with pytest.raises(UnknownModel):
        zoo.record_loss(measurement("nobody"))
    first, second = measurement("model"), measurement("model", text="u", created=2.0)
    for made in (second, measurement("model", kl=0.5), first):
        zoo.record_loss(made)
    assert zoo.card("model").loss == (first, second)
    assert first.rise == pytest.approx(0.01)
    zoo.remove("model")
    zoo.add("model", llama, format="int8")
    assert zoo.card("model").loss == ()
