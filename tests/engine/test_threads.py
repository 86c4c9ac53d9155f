"""Threads and kernels are an engine's own: engines of one process differ and do not disturb."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from blockllm.engine import Engine
from blockllm.engine.kernels.cpu import native
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings
from tests.engine.conftest import MODELS

# how many threads a kernel was called with is among its last arguments
CALLS = ("program_run", "best_rows", "linear_run", "lora_run", "rms_norm", "linear_pack")


def serve(engine: Engine) -> dict[str, Answer]:
    wanted = greedy(12, logprobs=2)
    asked = [request(name, name, range(3, 30 + i), wanted) for i, name in enumerate(MODELS)]
    return run(engine, asked)


class Watched:
    """The library of kernels; keeps the number of threads of each call."""

    def __init__(self, library: Any, threads: list[int]) -> None:
        self._library, self._threads = library, threads

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        if name not in CALLS:
            return function

        def call(*arguments: Any) -> Any:
            self._threads.append(arguments[-1])
            return function(*arguments)

        return call


def test_kernels_get_the_engines_number_of_threads(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.available(torch.device("cpu")):
        pytest.skip("no compiler here")
    threads: list[int] = []
    watched, before = Watched(native.library(), threads), torch.get_num_threads()
    for module in ("program", "packed", "native"):
        monkeypatch.setattr(f"blockllm.engine.kernels.cpu.{module}.library", lambda: watched)
    for wanted in (1, 3):
        serve(Engine(zoo, MODELS, settings(threads=wanted)))
        assert set(threads) == {wanted} and len(threads) > 50
        threads.clear()
    assert torch.get_num_threads() == before


def test_engines_of_one_process_differ_in_threads_and_kernels(zoo: Zoo) -> None:
    options: list[dict[str, Any]] = [{"threads": 1}, {"threads": 3}, {"kernels": "plain"}]
    engines = [Engine(zoo, MODELS, settings(prefix_cache=False, **each)) for each in options]
    assert [engine.parts.kernels.built for engine in engines] == [True, True, False]
    in_turn = [serve(engine) for engine in engines]
    assert in_turn[0] == in_turn[1]  # log-probabilities, too
    wanted = {name: answer.tokens for name, answer in in_turn[0].items()}
    assert {name: answer.tokens for name, answer in in_turn[2].items()} == wanted
    with ThreadPoolExecutor(len(engines)) as pool:
        beside = list(pool.map(serve, engines))
    assert beside[:2] == in_turn[:2]
    assert {name: answer.tokens for name, answer in beside[2].items()} == wanted


@pytest.mark.parametrize("options", [{"kernels": "plain"}, {"dtype": "bfloat16"}], ids=str)
def test_plain_and_narrow_engines_call_no_native_kernel(
    zoo: Zoo, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AssertionError("a native kernel is called")

    if options.get("kernels") == "plain":
        monkeypatch.setattr("blockllm.engine.kernels.cpu.native.library", fail)
        monkeypatch.setattr("blockllm.engine.kernels.cpu.packed.library", fail)
    monkeypatch.setattr("blockllm.engine.kernels.cpu.program.library", fail)
    engine = Engine(zoo, MODELS, settings(cut="layers", **options))
    assert all(answer.tokens for answer in serve(engine).values())
