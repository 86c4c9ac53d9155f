"""The int8 format of linears, computed while a checkpoint is read; nothing is kept in between.

X.weight  I8  [out, in]   q = round(w / scale), half to even, within -127..127
X.scale   F32 [out]       max|row| / 127; 1 for a row of zeros        w ≈ q · scale[:, None]

Computed in fp32 whatever the source's dtype, so equal weights become equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from blockllm.errors import CheckpointError
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.header import Entry
from blockllm.zoo.packs import Readable

# source bytes rounded at a time; the arrays in between take about ten times as much
_PIECE_BYTES = 1 << 20


class Int8Part(NamedTuple):
    """One of the two tensors that a weight [out, in] becomes."""

    source: Source
    part: Literal["weight", "scale"]

    @property
    def entry(self) -> Entry:
        """As if it lay in a file at offset 0."""
        rows, columns = self.source.entry.shape
        if self.part == "scale":
            return Entry("F32", (rows,), 0, 4 * rows)
        return Entry("I8", (rows, columns), 0, rows * columns)

    @property
    def where(self) -> str:
        return self.source.where

    def chunks(self) -> Iterator[memoryview]:
        """The tensor's bytes in pieces. Raises CheckpointError for values that are not finite."""
        from blockllm.zoo import rounding

        _, (rows, columns), _, nbytes = self.source.entry
        row_bytes = nbytes // rows
        piece_bytes = max(1, _PIECE_BYTES // row_bytes) * row_bytes
        make = rounding.make_scales if self.part == "scale" else rounding.make_weight
        for piece in self.source.chunks(piece_bytes):
            try:
                yield make(piece, self.source.entry.dtype, columns)
            except ValueError as error:
                raise CheckpointError(f"{self.where}: {error}") from error


def round_linears(sources: dict[str, Source], linears: tuple[str, ...]) -> dict[str, Readable]:
    """A layer's tensors, those named by `linears` in the int8 format."""
    parts: dict[str, Readable] = {}
    for name, source in sources.items():
        if name in linears:
            parts |= round_weight(name, source)
        else:
            parts[name] = source
    return parts


def round_weight(name: str, source: Source) -> dict[str, Int8Part]:
    """The two tensors by their names in the layer."""
    return {name: Int8Part(source, "weight"), scale_name(name): Int8Part(source, "scale")}


def scale_name(weight: str) -> str:
    """Name of the scale beside a weight: `mlp.up_proj.scale`; `scale` for the head."""
    return f"{weight.removesuffix('weight')}scale"
