"""The zoo's packs in memory: mapped, and compared with their names before they are used."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

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


class Packs:
    """Maps each pack once. What is seen of a tensor changes with its file: one that is kept for
    long has to be copied."""

    def __init__(self, pack_path: Callable[[str], Path], verify: bool) -> None:
        """`verify`: each tensor's bytes are compared with its name when it is first viewed."""
        self.verifies = verify
        self._pack_path = pack_path
        self._maps: dict[str, mmap.mmap] = {}
        self._verified: set[str] = set()

    def view(self, tensor: Tensor) -> torch.Tensor:
        """A tensor in its mapped pack. Raises CorruptStore if that is missing, too short, or found
        to have other bytes."""
        mapped = self._map(tensor.pack)
        if tensor.offset + tensor.nbytes > len(mapped):
            raise _damaged(tensor.pack, "it is too short")
        dtype = TORCH_DTYPES[tensor.dtype]
        count = tensor.nbytes // dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=tensor.offset)
        if self.verifies and tensor.hash not in self._verified:
            hasher = tensor_hasher(tensor.dtype, tensor.shape, tensor.nbytes)
            hasher.update(flat.view(torch.uint8).numpy().data)
            if hasher.hexdigest() != tensor.hash:
                raise _damaged(tensor.pack, "its bytes are not what was stored")
            self._verified.add(tensor.hash)
        return flat.view(tensor.shape)

    def forget(self, tensor: Tensor) -> None:
        """Let the system drop the tensor's pages: there is a copy of it."""
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


def _damaged(pack: str, what: str) -> CorruptStore:
    return CorruptStore(f"pack {pack}: {what}; run `blockllm zoo verify`")
