"""Tensors of the zoo's packs in memory: read and compared with their names, or mapped.

Read ones are copies: what happens to the files later does not matter. Mapped ones share the
system's page cache; a file that is cut short then ends the process.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import torch

from blockllm.core import Tensor
from blockllm.errors import CorruptStore
from blockllm.zoo.digest import tensor_hasher

TORCH_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
}
PackPath = Callable[[str], Path]


class Packs(Protocol):
    """Where a loader finds tensors as they are stored."""

    def view(self, tensor: Tensor) -> torch.Tensor:
        """A tensor on the CPU. Raises CorruptStore if its pack is missing, too short, or found to
        have other bytes."""

    def forget(self, tensor: Tensor) -> None:
        """There is a copy of the tensor elsewhere now."""


class ReadPacks:
    """Reads each tensor and compares its bytes with its name; one in use is not read twice."""

    def __init__(self, pack_path: PackPath) -> None:
        self._pack_path = pack_path
        self._used: WeakValueDictionary[str, torch.Tensor] = WeakValueDictionary()

    def view(self, tensor: Tensor) -> torch.Tensor:
        """See Packs."""
        found = self._used.get(tensor.hash)
        if found is None:
            self._used[tensor.hash] = found = self._read(tensor)
        return found

    def forget(self, tensor: Tensor) -> None:
        """Nothing to do: what is not used is gone."""

    def _read(self, tensor: Tensor) -> torch.Tensor:
        found = torch.empty(tensor.shape, dtype=TORCH_DTYPES[tensor.dtype])
        if not tensor.nbytes:
            return found
        data = found.view(-1).view(torch.uint8).numpy().data
        try:
            with open(self._pack_path(tensor.pack), "rb", buffering=0) as file:
                size = _read_into(file.fileno(), data, tensor.offset)
        except OSError as error:
            raise _damaged(tensor.pack, str(error.strerror)) from error
        if size < tensor.nbytes:
            raise _damaged(tensor.pack, "it is too short")
        hasher = tensor_hasher(tensor.dtype, tensor.shape, tensor.nbytes)
        hasher.update(data)
        if hasher.hexdigest() != tensor.hash:
            raise _damaged(tensor.pack, "its bytes are not what was stored")
        return found


class MappedPacks:
    """Maps each pack once; bytes are read when they are first used, and not checked."""

    def __init__(self, pack_path: PackPath) -> None:
        self._pack_path = pack_path
        self._maps: dict[str, mmap.mmap] = {}

    def view(self, tensor: Tensor) -> torch.Tensor:
        """See Packs."""
        mapped = self._map(tensor.pack)
        if tensor.offset + tensor.nbytes > len(mapped):
            raise _damaged(tensor.pack, "it is too short")
        dtype = TORCH_DTYPES[tensor.dtype]
        count = tensor.nbytes // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=tensor.offset).view(
            tensor.shape
        )

    def forget(self, tensor: Tensor) -> None:
        """Let the system drop the tensor's pages."""
        page = mmap.PAGESIZE
        start = -(-tensor.offset // page) * page
        length = (tensor.offset + tensor.nbytes) // page * page - start
        if length > 0:
            self._map(tensor.pack).madvise(mmap.MADV_DONTNEED, start, length)

    def _map(self, pack: str) -> mmap.mmap:
        if pack not in self._maps:
            try:
                with open(self._pack_path(pack), "rb") as file:
                    # copy-on-write: torch wants writable memory, the file stays as it is
                    self._maps[pack] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise _damaged(pack, str(error.strerror)) from error
            except ValueError as error:
                raise _damaged(pack, "it is empty") from error
        return self._maps[pack]


def _read_into(descriptor: int, data: memoryview, offset: int) -> int:
    """Read from an offset until `data` is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(data):
        count = os.preadv(descriptor, [data[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def _damaged(pack: str, what: str) -> CorruptStore:
    return CorruptStore(f"pack {pack}: {what}; run `blockllm zoo verify`")
