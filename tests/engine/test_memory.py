"""Memory that kernels stream through."""

from __future__ import annotations

import gc
import mmap
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine.kernels.cpu import memory
from blockllm.engine.kernels.cpu.memory import new_memory

DTYPES = st.sampled_from([torch.int8, torch.bfloat16, torch.float32])


@given(st.lists(st.tuples(st.integers(1, 1 << 20), DTYPES), min_size=1, max_size=8))
def test_tensors_keep_to_themselves(wanted: list[tuple[int, torch.dtype]]) -> None:
    tensors = [new_memory(count, dtype=dtype) for count, dtype in wanted]
    for i, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    for i, (tensor, (count, dtype)) in enumerate(zip(tensors, wanted, strict=True)):
        assert (tensor.shape, tensor.dtype) == ((count,), dtype)
        assert bool((tensor == i).all())


def test_large_tensors_have_memory_of_their_own() -> None:
    tensor = new_memory(3, 1 << 25, dtype=torch.int8)
    assert tensor.shape == (3, 1 << 25) and tensor.data_ptr() % mmap.PAGESIZE == 0
    tensor[2, -1] = 1
    assert tensor[2, -1] == 1


def test_shared_memory_goes_with_its_last_tensor() -> None:
    memory._shared = None
    tensors = [new_memory(5, dtype=torch.int8) for _ in range(2)]
    room = weakref.ref(_shared_map())
    memory._shared = None
    tensors.pop()
    gc.collect()
    assert room() is not None
    tensors.pop()
    gc.collect()
    assert room() is None


def _shared_map() -> mmap.mmap:
    assert memory._shared is not None
    return memory._shared._map
