"""Decoder layers in one native call (`layer.cpp`). Plain twin: `layers/halves.py`, which calls the
same kernels one by one; the bits are equal."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from blockllm.core import LayerFunction
from blockllm.engine.kernels.cpu.native import address, library

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of weights; 3: int8
_Pointer, _Int, _Double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Matrix(ctypes.Structure):
    """Packed weights as `layer.cpp` takes them; all null where a layer lacks this half."""

    _fields_ = (
        ("weights", _Pointer),
        ("code", _Int),
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
    """Where the rows of a hop read and write KV, for all its layers. Strides are in floats."""

    _fields_ = (
        ("keys", _Pointer),  # of the first layer within the pages
        ("page_size", _Int),
        ("page_stride", _Int),
        ("layer_stride", _Int),
        ("value_stride", _Int),
        ("layers_per_page", _Int),
        ("cos", _Pointer),
        ("sin", _Pointer),
        ("rotations", _Pointer),  # [rows]: where each row's are; null: in order of the rows
        ("write_pages", _Pointer),  # [bundles, rows], bundles `write_stride` apart
        ("write_stride", _Int),
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


class Entry(ctypes.Structure):
    """The table that rows of token ids are looked up in."""

    _fields_ = (
        ("table", _Pointer),  # [vocab, hidden]
        ("code", _Int),
        ("vocab", _Int),
        ("hidden", _Int),
    )


class Head(ctypes.Structure):
    """Final norm and projection."""

    _fields_ = (("norm", _Pointer), ("eps", _Double), ("projection", Matrix))


NO_ROWS = Rows()  # for layers without attention
_NO_MATRIX = Matrix()


def describe_layer(
    function: LayerFunction,
    matrices: Sequence[Matrix],  # qkv, o and gate_up, down: of the halves that there are
    norms: Sequence[torch.Tensor | None],  # before attention, of q heads, k heads, before mlp
) -> Layer:
    """A layer's weights and sizes. It points into matrices and norms and does not keep them."""
    missing = (_NO_MATRIX, _NO_MATRIX)
    before = missing if function.part == "mlp" else ()
    behind = missing if function.part == "attention" else ()
    return Layer(
        *before, *matrices, *behind,
        *map(address, norms),
        function.hidden_size, function.num_heads, function.num_kv_heads, function.head_dim,
        function.window or 0, function.norm_eps, max(function.head_dim, 1) ** -0.5,
    )  # fmt: skip


def describe_entry(table: torch.Tensor) -> Entry | None:
    """An embedding's table; None if it is of another type. It points into it and does not keep
    it."""
    code = CODES.get(table.dtype)
    if code is None or table.device.type != "cpu":
        return None
    return Entry(table.data_ptr(), code, *table.shape)


def describe_head(norm: torch.Tensor, eps: float, projection: Matrix) -> Head:
    """It points into its arguments and does not keep them."""
    return Head(norm.data_ptr(), eps, projection)


class FusedLayers:
    """Neighbouring decoder layers, whole or halves, for rows in fp32 on the CPU; with the embedding
    before them and the head behind, where these are given."""

    def __init__(
        self, layers: Sequence[Layer], entry: Entry | None = None, head: Head | None = None
    ) -> None:
        self.layers, self.entry, self.head = layers, entry, head
        self._addresses = (_Pointer * len(layers))(*map(ctypes.addressof, layers))
        ends = [0 if end is None else ctypes.addressof(end) for end in (entry, head)]
        self._where = (ctypes.addressof(self._addresses), len(layers), *ends)
        self._width = 0 if head is None else head.projection.outputs

    def join(self, behind: FusedLayers) -> FusedLayers:
        """Both in one call; there is nothing between them."""
        return FusedLayers([*self.layers, *behind.layers], self.entry, behind.head)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden], contiguous; token ids [rows] where there is an entry
        rows: Rows,
        kv_layer: int,  # number of the first layer among those that keep KV
        tiles: torch.Tensor | None,  # [n, 3] int32: first row, end, adapter
        threads: int,
        kept: torch.Tensor | None = None,  # [k] int64, ascending: rows that go on behind attention
        kept_tiles: torch.Tensor | None = None,  # of these rows
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or k, hidden], behind a head [rows or k, vocab]; keys and values
        of the rows land on their pages. `kept` needs a layer with attention; from the last of them
        on the others are dropped."""
        of_kept = (0, -1) if kept is None else _array(kept)
        left = len(x) if kept is None else len(kept)
        # hidden states of all rows are in `out` until the last layer
        size = (len(x), self.layers[0].hidden) if self.head is None else (left, self._width)
        out = torch.empty(size)
        library().layers_run(
            *(out.data_ptr(), x.data_ptr(), x.shape[0], *self._where),
            *(ctypes.addressof(rows), kv_layer, *_array(tiles)),
            *(*of_kept, *_array(kept_tiles), threads),
        )
        return out[:left]


def _array(values: torch.Tensor | None) -> tuple[int, int]:
    """Where it is and how many there are."""
    return (0, 0) if values is None else (values.data_ptr(), values.shape[0])
