"""Tensors from the zoo's packs to the device, each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from blockllm.core import Tensor
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.matmul import Matmul, make_matmul, packs
from blockllm.engine.weights.packs import Packs


class PackStore(Protocol):
    """The part of the zoo that the loader needs."""

    def pack_path(self, pack: str) -> Path: ...


class TensorLoader:
    """Loads each distinct tensor once, whichever blocks and models name it."""

    def __init__(
        self,
        store: PackStore,
        device: torch.device,
        dtype: torch.dtype,
        advance: Callable[[int], None] | None = None,
        verify: bool = True,
        kernels: Kernels = ALL_CORES,
    ) -> None:
        """`advance` is told how many bytes of distinct tensors have been read. `verify` compares
        them with their names, and keeps nothing that changes with a file."""
        self._packs = Packs(store.pack_path, verify)
        self._advance = advance
        self._seen: set[str] = set()
        self._num_bytes = 0
        self._device, self.kernels = device, kernels
        self.dtype = dtype  # what is computed in
        self._tensors: dict[str, torch.Tensor] = {}
        self._tables: dict[str, torch.Tensor] = {}
        self._matmuls: dict[tuple[str, ...], Matmul] = {}

    def matmul(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
    ) -> Matmul:
        """A linear over the stacked weights, shared by every layer that asks for the same. They
        are int8 where they have scales: all or none."""
        key = tuple(t.hash if t else "" for t in (*weights, *biases, *scales))
        if key not in self._matmuls:
            self._matmuls[key] = self._make_matmul(weights, biases, scales)
        return self._matmuls[key]

    def _make_matmul(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
    ) -> Matmul:
        copied = packs(self._device, self.dtype, self.kernels)
        # a lone weight is not copied elsewhere: the layers that need it share it
        load = self._view if copied else self.read if len(weights) > 1 else self.load
        views = [load(w) for w in weights]
        given = [self.load(scale).float() for scale in scales if scale]
        assert len(given) in (0, len(weights)), "int8 and float weights stacked"
        scale = torch.cat(given) if given else None
        matmul = make_matmul(
            views, self._stack_biases(weights, biases), scale, self.dtype, self.kernels
        )
        if copied or len(views) > 1:
            for weight in weights:
                self._forget_pages(weight)
        return matmul

    def _float_or_int8(self, view: torch.Tensor) -> torch.Tensor:
        return view.to(self._device, self.dtype if view.is_floating_point() else view.dtype)

    def _stack_biases(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> torch.Tensor | None:
        if not any(biases):
            return None
        zeros = (torch.zeros(w.shape[0], device=self._device, dtype=self.dtype) for w in weights)
        loaded = [self.load(b) if b else zero for b, zero in zip(biases, zeros, strict=True)]
        return torch.cat(loaded)

    def _forget_pages(self, tensor: Tensor) -> None:
        """Let the system drop a tensor's mapped pages: a copy of it is in memory."""
        if tensor.hash not in self._tensors:
            self._packs.forget(tensor)

    def load(self, tensor: Tensor) -> torch.Tensor:
        """The tensor on the device in the compute dtype. Raises CorruptStore if its pack is
        missing, too short, or has other bytes."""
        loaded = self._tensors.get(tensor.hash)
        if loaded is None:
            view = self._view(tensor)
            loaded = self._own(tensor, view, self._float_or_int8(view))
            self._tensors[tensor.hash] = loaded
        return loaded

    def table(self, tensor: Tensor) -> torch.Tensor:
        """As `load`, for a matrix whose rows are looked up: it stays as stored where packed weights
        do. Raises CorruptStore."""
        if not packs(self._device, self.dtype, self.kernels):
            return self.load(tensor)
        if tensor.hash not in self._tables:
            view = self._view(tensor)
            self._tables[tensor.hash] = self._own(tensor, view, view)
        return self._tables[tensor.hash]

    def _own(self, tensor: Tensor, view: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
        """What is loaded, in memory of its own where it has to be."""
        if loaded is not view or not self._packs.verifies:
            return loaded
        copy = view.clone()
        self._packs.forget(tensor)
        return copy

    def read(self, tensor: Tensor) -> torch.Tensor:
        """As `load`, for a tensor that is looked at once: it is not kept here. Raises
        CorruptStore."""
        loaded = self._tensors.get(tensor.hash)
        return self._float_or_int8(self._view(tensor)) if loaded is None else loaded

    def _view(self, tensor: Tensor) -> torch.Tensor:
        view = self._packs.view(tensor)
        self._note(tensor)
        return view

    def _note(self, tensor: Tensor) -> None:
        if self._advance is not None and tensor.hash not in self._seen:
            self._seen.add(tensor.hash)
            self._num_bytes += tensor.nbytes
            self._advance(self._num_bytes)
