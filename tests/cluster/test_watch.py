from __future__ import annotations

import os
import time

import pytest

from blockllm.cluster.watch import LOOKS, Watch, processor_seconds

Look = tuple[int, float | None, bool]  # messages, processor seconds, whether requests wait


@pytest.mark.parametrize(
    ("looks", "hangs"),
    [
        ([(1, 2.0, True)] * (LOOKS + 1), True),
        ([(1, 2.0, True)] * LOOKS, False),  # the first one only says where it stands
        ([(1, 2.0, False)] * 20, False),
        ([(1, None, True)] * 20, False),
        ([(n, 2.0, True) for n in range(20)], False),
        ([(1, n * 0.1, True) for n in range(20)], False),
        ([(1, n * 0.001, True) for n in range(20)], True),
        ([(1, 2.0, True), (1, 2.0, True), *[(1, 2.0, False)] * (LOOKS - 1)], True),
        ([*[(1, 2.0, True)] * LOOKS, (2, 2.0, True), *[(2, 2.0, True)] * (LOOKS - 1)], False),
    ],
)
def test_only_an_agent_that_neither_speaks_nor_computes_hangs(looks: list[Look], hangs: bool):
    watch = Watch(1.0)
    assert any(watch.look(*look) for look in looks) is hangs


def test_processor_seconds_grow_with_work_alone():
    before = processor_seconds(os.getpid())
    assert before is not None
    ends = time.process_time() + 0.1
    while time.process_time() < ends:
        pass
    after = processor_seconds(os.getpid())
    assert after is not None and after - before >= 0.05
    assert processor_seconds(1 << 30) is None
