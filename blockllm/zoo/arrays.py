"""Stored numbers as numpy arrays. Apart, so that numpy is imported only where it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blockllm.core import Layer, Tensor
from blockllm.errors import CheckpointError, CorruptStore
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.int8 import scale_name

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_INTEGERS = {"U8": "<u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def widen(data: memoryview, dtype: str) -> Floats:
    """Numbers of type F32, F16 or BF16 as fp32, flat."""
    if dtype == "F32":
        return np.frombuffer(data, "<f4")
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    # bf16 is the upper half of fp32
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def read_floats(source: Source) -> Floats:
    """A tensor of an adapter as fp32, in its shape."""
    return widen(memoryview(_read(source)), source.entry.dtype).reshape(source.entry.shape)


def check_integers(source: Source) -> None:
    """Raise CheckpointError unless a tensor is of integers, or of fp32: some writers save integers
    so."""
    dtype = source.entry.dtype
    if dtype != "F32" and dtype not in _INTEGERS:
        raise CheckpointError(f"{source.where}: expected integers, got {dtype}")


def read_integers(source: Source, below: int) -> Integers:
    """A tensor of integers in its shape.

    Raises CheckpointError for a number outside 0 … `below` - 1, or another type.
    """
    check_integers(source)
    dtype = source.entry.dtype
    if dtype == "F32":
        # what is no number in range becomes -1, which is refused below
        found = np.nan_to_num(read_floats(source), nan=-1, posinf=-1, neginf=-1)
        numbers = found.clip(-1, 2.0**62).astype(np.int64)
    else:
        numbers = np.frombuffer(_read(source), _INTEGERS[dtype]).astype(np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < below:
        wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
        raise CheckpointError(f"{source.where}: the index {wrong} lies outside 0..{below - 1}")
    return numbers.reshape(source.entry.shape)


class Weights:
    """The tensors of a model's layers as fp32 arrays; int8 weights times their scales."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        pack_path: Callable[[str], Path],
        instead: Mapping[tuple[int, str], Source] | None = None,
    ) -> None:
        """`pack_path` finds the layers' tensors; those of `instead` stand in their places."""
        self._layers, self._pack_path, self._instead = layers, pack_path, instead or {}
        self.used: set[tuple[int, str]] = set()  # places that were asked for

    def with_others(self, instead: Mapping[tuple[int, str], Source]) -> Weights:
        """These weights with others in some places."""
        others = Weights(self._layers, self._pack_path, {**self._instead, **instead})
        others.used = self.used
        return others

    def __getitem__(self, place: tuple[int, str]) -> Floats:
        """The tensor of a position and name, in its shape; raises CorruptStore if its pack is
        damaged."""
        self.used.add(place)
        if place in self._instead:
            return read_floats(self._instead[place])
        position, name = place
        tensors = self._layers[position].tensors
        tensor = tensors[name]
        if tensor.dtype != "I8":
            return widen(self._map(tensor), tensor.dtype).reshape(tensor.shape)
        codes = np.frombuffer(self._map(tensor), np.int8).reshape(tensor.shape)
        scales = widen(self._map(tensors[scale_name(name)]), "F32")
        return codes.astype(np.float32) * scales[:, None]

    def _map(self, tensor: Tensor) -> memoryview:
        path = self._pack_path(tensor.pack)
        if not path.exists() or path.stat().st_size < tensor.offset + tensor.nbytes:
            raise CorruptStore(f"pack {tensor.pack} is damaged; `zoo verify` names the models")
        return np.memmap(path, np.uint8, "r", tensor.offset, (tensor.nbytes,)).data


def _read(source: Source) -> bytes:
    return b"".join(bytes(chunk) for chunk in source.chunks())
