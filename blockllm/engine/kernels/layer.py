"""A decoder layer in one native call (`layer.cpp`). Plain twin: `models/halves.py`, which calls the
same kernels one by one; the bits are equal."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from blockllm.core import LayerFunction
from blockllm.engine.kernels.native import library

_Pointer, _Int, _Double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Matrix(ctypes.Structure):
    """Packed weights as `layer.cpp` takes them; all null where a layer lacks this half."""

    _fields_ = (
        ("weights", _Pointer),
        ("code", _Int),  # 0 fp32, 1 bf16, 2 fp16, 3 int8
        ("scale", _Pointer),
        ("offsets", _Pointer),
        ("bias", _Pointer),
        ("inputs", _Int),
        ("outputs", _Int),
        ("adapters", _Pointer),  # `PackedAdapters.address`
    )


class Layer(ctypes.Structure):
    """The layer's weights and sizes."""

    _fields_ = (
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("norm", _Pointer),
        ("q_norm", _Pointer),
        ("k_norm", _Pointer),
        ("mlp_norm", _Pointer),
        ("hidden", _Int),
        ("heads", _Int),
        ("kv_heads", _Int),
        ("dim", _Int),
        ("window", _Int),
        ("eps", _Double),
        ("scale", _Double),
    )


class Rows(ctypes.Structure):
    """Where the rows of a hop read and write KV, for all its layers."""

    _fields_ = (
        ("page_size", _Int),
        ("page_stride", _Int),  # in floats, as the next
        ("value_stride", _Int),
        ("cos", _Pointer),
        ("sin", _Pointer),
        ("write_pages", _Pointer),  # [bundles, rows]
        ("write_offsets", _Pointer),  # [rows]
        ("tables", _Pointer),  # [sequences, bundles, width]
        ("bundles", _Int),
        ("width", _Int),
        ("tiles", _Pointer),  # [num_tiles, 4]
        ("num_tiles", _Int),
        ("members", _Pointer),  # [singles], as the next two
        ("where", _Pointer),
        ("contexts", _Pointer),
        ("singles", _Int),
    )


class Place(NamedTuple):
    """Where one layer of a hop reads and writes KV."""

    rows: Rows
    keys: int  # address of the layer's first page
    bundle: int


_NO_MATRIX, _NO_PLACE = Matrix(), Place(Rows(), 0, 0)


class FusedLayer:
    """All of a decoder layer, or one of its halves, for rows in fp32 on the CPU."""

    def __init__(
        self,
        function: LayerFunction,
        matrices: Sequence[Matrix],  # qkv, o and gate_up, down: of the halves that there are
        norms: Sequence[torch.Tensor | None],  # before attention, of q heads, k heads, before mlp
        kept: object,  # what the matrices point into
    ) -> None:
        missing = (_NO_MATRIX, _NO_MATRIX)
        before = missing if function.part == "mlp" else ()
        behind = missing if function.part == "attention" else ()
        self._kept = (norms, kept)
        self._layer = Layer(
            *before, *matrices, *behind,
            *(0 if norm is None else norm.data_ptr() for norm in norms),
            function.hidden_size, function.num_heads, function.num_kv_heads, function.head_dim,
            function.window or 0, function.norm_eps, max(function.head_dim, 1) ** -0.5,
        )  # fmt: skip
        self._address = ctypes.addressof(self._layer)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden], contiguous
        place: Place | None,  # None without attention
        tiles: torch.Tensor | None,  # [n, 3] int32: first row, end, adapter
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]; keys and values of the rows land on their pages."""
        out = torch.empty_like(x)
        rows, keys, bundle = place or _NO_PLACE
        segments = (0, 0) if tiles is None else (tiles.data_ptr(), tiles.shape[0])
        library().layer_run(
            *(out.data_ptr(), x.data_ptr(), x.shape[0], self._address),
            *(ctypes.addressof(rows), keys, bundle, *segments),
            torch.get_num_threads(),
        )
        return out
