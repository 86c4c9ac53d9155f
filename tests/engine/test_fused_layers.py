"""Layers in one native call give the bits of the same kernels called one by one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.core import LayerFunction
from blockllm.engine import Engine
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.engine.kernels.cpu.program import NO_KV, NativeLayer, NativeProgram, table_matrix
from blockllm.engine.kernels.cpu.structs import NativeOp, OpCode, Register
from blockllm.engine.layers import section
from blockllm.engine.layers.section import Section
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Every family, 16 bits, int8, an adapter that fused layers know and one that they do not, and
    `half`, which differs from `base` in one MLP: that layer is served in halves."""
    root: Path = tmp_path_factory.mktemp("mixed")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1)
    make_checkpoint(root / "windowed", "mistral", seed=2, sliding_window=20)
    make_checkpoint(root / "biased", "qwen2", seed=3, dtype=torch.float16)
    make_checkpoint(root / "normed", "qwen3", seed=4, dtype=torch.bfloat16)
    shutil.copytree(base, root / "half")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= -0.5
    save_file(tensors, root / "half" / "model.safetensors", {"format": "pt"})
    make_checkpoint(root / "relu", seed=5, hidden_act="relu")
    for name in ("base", "half", "windowed", "biased", "normed", "relu"):
        zoo.add(name, root / name)
    zoo.add("rounded", root / "base", format="int8")
    make_lora(base, root / "lora", r=3, target_modules="all-linear")
    make_lora(base, root / "dora", r=2, use_dora=True)
    for name in ("lora", "dora"):
        zoo.add(name, root / name, base="base")
    zoo.add("rounded-lora", root / "lora", base="rounded")
    return zoo


def serve(zoo: Zoo) -> dict[str, Answer]:
    """All models at once, twice each; prompts are cut, so single rows lie between longer runs."""
    engine = Engine(zoo, None, settings(max_rows=48, max_sequences=12))
    names = sorted(zoo.chains())
    return run(
        engine,
        [
            request(f"{name}-{i}", name, range(5, 30 + 17 * i + 3 * n), greedy(9, logprobs=4))
            for i in range(2)
            for n, name in enumerate(names)
        ],
    )


def decoder_layers(zoo: Zoo) -> list[LayerFunction]:
    """The functions of all decoder layers."""
    entries = [entry for chain in zoo.chains().values() for entry in chain.entries]
    functions = [layer.function for entry in entries for layer in entry.block.layers]
    return [function for function in functions if isinstance(function, LayerFunction)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts rows of fused calls."""
    seen: list[int] = []
    real = NativeProgram.__call__

    def counted(self: NativeProgram, x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(len(x))
        return real(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeProgram, "__call__", counted)
    return seen


@pytest.mark.parametrize("which", ["zoo", "mixed"])
def test_fused_layers_give_the_bits_of_their_parts(
    which: str,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    models: Zoo = request.getfixturevalue(which)
    fused = serve(models)
    assert len(set(calls)) > 3
    if which == "mixed":
        parts = {function.part for function in decoder_layers(models)}
        assert parts == {"whole", "attention", "mlp"}
    calls.clear()
    monkeypatch.setattr(section, "lower", lambda ops: None)
    assert serve(models) == fused
    assert not calls


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> int:
    """That many compute threads, for one test."""
    number: int = request.param
    return number


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
def test_a_row_alone_gives_the_bits_of_its_parts(
    mixed: Zoo, threads: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve_alone() -> list[Answer]:
        engine = Engine(mixed, None, settings(threads=threads))
        return [
            run(engine, [request(name, name, range(5, 30), greedy(24, logprobs=4))])[name]
            for name in sorted(mixed.chains())
        ]

    fused = serve_alone()
    assert calls.count(1) > 100
    monkeypatch.setattr(section, "lower", lambda ops: None)
    assert serve_alone() == fused


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("which", ["zoo", "mixed"])
def test_rows_whose_next_token_nobody_wants_are_dropped_without_a_trace(
    which: str,
    fuses: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    models: Zoo = request.getfixturevalue(which)
    if not fuses:
        monkeypatch.setattr(section, "lower", lambda ops: None)
    dropping, dropped = serve(models), []
    real = Section.__call__

    def keep_all(self: Section, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        *where, kept = rest
        out = real(self, x, *where)
        if kept is None:
            return out
        dropped.append(len(x) - len(kept.rows))
        return out[kept.rows]

    monkeypatch.setattr(Section, "__call__", keep_all)
    assert serve(models) == dropping
    assert min(dropped) > 0, "rows that are all wanted need no choice"


def test_tokens_without_a_row_in_the_table_become_no_number() -> None:
    table = torch.arange(12.0).to(torch.float16).view(3, 4)
    matrix = table_matrix(table)
    assert matrix is not None
    op = NativeOp(code=OpCode.LOOK_UP, target=Register.STREAM, added=-1, matrix=matrix)
    program = NativeProgram([NativeLayer([op], attends=False)], Register.STREAM)
    tokens = torch.tensor([2, 3, -1, 0])
    looked_up = program(tokens, NO_KV, 0, None, 2)
    alone = torch.cat([program(token, NO_KV, 0, None, 2) for token in tokens.split(1)])
    assert torch.equal(alone.nan_to_num(-1), looked_up.nan_to_num(-1))
    assert looked_up[0].tolist() == [8, 9, 10, 11] and looked_up[3].tolist() == [0, 1, 2, 3]
    assert looked_up[1:3].isnan().all()


def test_a_delta_that_layers_do_not_fuse_slows_no_other_model(mixed: Zoo, calls: list[int]) -> None:
    engine = Engine(mixed, ["lora", "dora"], settings())
    fused = {}
    for name in ("dora", "lora"):
        run(engine, [request("a", name, range(9), greedy(3))])
        fused[name] = len(calls)
        calls.clear()
    assert fused["dora"] < fused["lora"]  # blocks that it changes nothing in fuse
