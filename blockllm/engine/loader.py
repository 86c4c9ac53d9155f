"""Tensors from the zoo's packs to the device: mapped, not copied, where the dtypes agree."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

import torch

from blockllm.core import Tensor
from blockllm.errors import CorruptStore

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class PackStore(Protocol):
    """The part of the zoo that the loader needs."""

    def pack_path(self, pack: str) -> Path: ...


class TensorLoader:
    """Loads each distinct tensor once, whichever blocks and models name it."""

    def __init__(self, store: PackStore, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._device = device
        self._dtype = dtype
        self._maps: dict[str, mmap.mmap] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def load(self, tensor: Tensor) -> torch.Tensor:
        """The tensor on the device in the compute dtype. On CPU with equal dtypes it is a view
        of the pack file. Raises CorruptStore if the pack is missing or too short."""
        loaded = self._tensors.get(tensor.hash)
        if loaded is None:
            view = self._view(tensor)
            loaded = view.to(self._device, self._dtype)
            self._tensors[tensor.hash] = loaded
        return loaded

    @property
    def num_bytes(self) -> int:
        """Bytes of all distinct tensors loaded so far."""
        return sum(t.nbytes for t in self._tensors.values())

    def _view(self, tensor: Tensor) -> torch.Tensor:
        mapped = self._map(tensor.pack)
        if tensor.offset + tensor.nbytes > len(mapped):
            raise CorruptStore(f"pack {tensor.pack} is too short; run `blockllm zoo verify`")
        count = tensor.nbytes // TORCH_DTYPES[tensor.dtype].itemsize
        flat = torch.frombuffer(
            mapped, dtype=TORCH_DTYPES[tensor.dtype], count=count, offset=tensor.offset
        )
        return flat.view(tensor.shape)

    def _map(self, pack: str) -> mmap.mmap:
        if pack not in self._maps:
            try:
                with open(self._store.pack_path(pack), "rb") as file:
                    # copy-on-write: torch wants writable memory, the file stays as it is
                    self._maps[pack] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CorruptStore(f"pack {pack}: {error}; run `blockllm zoo verify`") from error
        return self._maps[pack]
