"""What hops of one batch have in common is made once and goes with the batch."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from blockllm.engine import Engine
from blockllm.engine.run.inputs import BatchInputs
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings


def test_hops_with_equal_rows_share_what_is_made_of_them(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []  # of each batch's inputs, the row set that is asked for
    real = BatchInputs.attention
    shared: dict[tuple[int, int], set[int]] = {}

    def noted(self: BatchInputs, batch: Any, carried: Any, *more: Any) -> Any:
        found = real(self, batch, carried, *more)
        key = (id(batch), carried.number)
        made.append(key)
        shared.setdefault(key, set()).add(id(found[0]))
        return found

    monkeypatch.setattr(BatchInputs, "attention", noted)
    engine = Engine(zoo, ["base", "upper", "lora-all"], settings(cut="layers", kernels="plain"))
    asked = [request(m, m, range(5 + i), greedy(1)) for i, m in enumerate(engine.parts.states)]
    run(engine, asked)
    assert len(made) > len(shared), "several layers ask for the rows of one set"
    assert all(len(rows) == 1 for rows in shared.values())


def test_only_the_last_batch_is_kept(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings())
    run(engine, [request("a", "base", range(7), greedy(3))])
    gc.collect()
    executor: Any = engine.parts.executor
    assert len(executor._batches) <= 1
