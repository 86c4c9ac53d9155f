"""Whole answers through the GPU kernels, and through replayed hops, equal those without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from blockllm.engine import Engine
from blockllm.engine import build as engine_setup
from blockllm.engine.attention import Attention, make_attention
from blockllm.engine.run.executor import Executor
from blockllm.engine.run.graphs import Compute, GraphExecutor, bucket_of, width_of
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings

MODELS = ["upper", "lora-all"]
PROMPTS = {m: [(i * 37 + 11 * j) % 96 for i in range(7)] for j, m in enumerate(MODELS)}


def answers(
    zoo: Zoo, models: list[str] = MODELS, tokens: int = 3, overlap: str = "auto"
) -> dict[str, list[int]]:
    """Requests of different models and lengths, so that buckets are filled differently."""
    engine = Engine(zoo, models, settings(device="auto", page_size=4, overlap=overlap))
    asked = [request(m, m, PROMPTS[m], greedy(tokens + i)) for i, m in enumerate(models)]
    done: dict[str, Answer] = run(engine, asked)
    return {name: answer.tokens for name, answer in done.items()}


@pytest.fixture
def plain_answers(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Of the plain twins."""
    with monkeypatch.context() as patch:
        patch.setattr(engine_setup, "make_attention", lambda name: make_attention("plain"))
        return answers(zoo)


def through_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_setup, "make_attention", lambda name: make_attention("triton"))


def test_kernels_answer_as_their_twins(
    zoo: Zoo,
    plain_answers: dict[str, list[int]],
    kernels_on: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through_triton(monkeypatch)
    assert answers(zoo) == plain_answers


class FakeCapture:
    """Computes again in place of replaying; counts both."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, compute: Compute) -> Compute:
        self.captured += 1
        compute()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return compute()

        return replay


def make_graph_executor(capture: Callable[[Compute], Compute]) -> Callable[..., GraphExecutor]:
    def make(plan, load, caches, attention: Attention, dtype, device, kernels):  # type: ignore[no-untyped-def]
        eager = Executor(plan, load, caches, attention, dtype, device, kernels)
        return GraphExecutor(plan, eager, caches, capture, 8)

    return make


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for CUDA graphs")
def test_replayed_hops_answer_as_computed_ones(
    zoo: Zoo,
    plain_answers: dict[str, list[int]],
    kernels_on: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through_triton(monkeypatch)
    capture = FakeCapture()
    monkeypatch.setattr(engine_setup, "Executor", make_graph_executor(capture))
    # tokens that only the device knows are put into the static memory
    assert answers(zoo, overlap="on") == plain_answers
    assert capture.captured and capture.replayed > capture.captured


def test_what_cannot_be_captured_is_computed(
    zoo: Zoo,
    plain_answers: dict[str, list[int]],
    kernels_on: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(compute: Compute) -> Compute:
        raise RuntimeError("this operator cannot be captured")

    through_triton(monkeypatch)
    monkeypatch.setattr(engine_setup, "Executor", make_graph_executor(refuse))
    assert answers(zoo, ["upper"]) == {"upper": plain_answers["upper"]}
    assert "this operator cannot be captured" in caplog.text


def test_buckets() -> None:
    assert [bucket_of(n, 64) for n in (1, 2, 3, 5, 8, 9, 16, 17, 63)] == [
        1, 2, 4, 8, 8, 16, 16, 24, 64,
    ]  # fmt: skip
    assert bucket_of(5, 6) == 6 and bucket_of(17, 20) == 20
    assert [width_of(n, 3000) for n in (1, 64, 65, 257, 2000)] == [64, 64, 256, 1024, 3000]
    assert width_of(3, 16) == 16
