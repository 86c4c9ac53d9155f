"""The weight files of a checkpoint folder: opened once, headers checked, bytes streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.causes import INDEX, WEIGHTS, explain
from blockllm.zoo.families.names import TIED_NAMES
from blockllm.zoo.foreign import is_there, open_foreign
from blockllm.zoo.header import Entry, read_header
from blockllm.zoo.settings_reader import SettingsReader, read_json
from blockllm.zoo.strangers import is_skipped

# bytes held in memory while a tensor is read, whatever its size
CHUNK_BYTES = 8 << 20
# every shard stays open while it is read; the largest published checkpoint has 191
_MAX_SHARDS = 512
_FLOATS = ("F32", "BF16", "F16")


class Source(NamedTuple):
    """One tensor of a checkpoint and the open file it lies in."""

    descriptor: int
    entry: Entry
    where: str

    def chunks(self, nbytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """The tensor's bytes in pieces of `nbytes`, the last one shorter. The pieces share one
        buffer: each is valid until the next is taken.
        """
        position, end = self.entry.offset, self.entry.offset + self.entry.nbytes
        buffer = memoryview(bytearray(min(nbytes, self.entry.nbytes)))
        while position < end:
            piece = buffer[: end - position]
            self._fill(piece, position)
            yield piece
            position += len(piece)

    def _fill(self, piece: memoryview, position: int) -> None:
        while piece:
            count = os.preadv(self.descriptor, [piece], position)
            if count == 0:
                raise CheckpointError(f"{self.where}: became shorter while being read")
            piece, position = piece[count:], position + count

    def check_dtype(self) -> None:
        """Raise UnsupportedModel unless the numbers are fp32, bf16 or fp16."""
        if self.entry.dtype not in _FLOATS:
            raise UnsupportedModel(
                f"{self.where}: weights of type {self.entry.dtype} are not supported "
                f"(supported: {', '.join(_FLOATS)})"
            )


class WeightFiles:
    """The tensors of a set of safetensors files by name. A context manager: closes the files.
    `absent` are names that an index promised without need.

    Raises CheckpointError for damaged files, and if a file changes while it is being read.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.tensors: dict[str, Source] = {}
        self.absent: list[str] = []
        self._opened: list[tuple[int, str, tuple[int, ...]]] = []
        try:
            for path in paths:
                self._open(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the tensors can no longer be read."""
        for descriptor, _, _ in self._opened:
            os.close(descriptor)
        self._opened.clear()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to since it was opened."""
        for descriptor, where, before in self._opened:
            if _identity(descriptor) != before:
                raise CheckpointError(f"{where}: changed while being read; try again")

    def _open(self, path: Path) -> None:
        descriptor = open_foreign(path)
        self._opened.append((descriptor, path.name, _identity(descriptor)))
        for name, entry in read_header(descriptor, path.name).items():
            if name in self.tensors:
                raise CheckpointError(f"{path.name}: tensor {name[:200]!r} is in another file too")
            self.tensors[name] = Source(descriptor, entry, path.name)


def open_model(folder: Path) -> WeightFiles:
    """The weights of a full checkpoint: model.safetensors, or the shards its index names."""
    single, index = folder / WEIGHTS, folder / INDEX
    if is_there(single):
        return WeightFiles([single])
    if not is_there(index):
        raise explain(folder, WEIGHTS)
    weight_map = SettingsReader(read_json(index), INDEX).section("weight_map")
    shards = {name: weight_map.text(name) for name in weight_map.all_keys()}
    names = sorted(set(shards.values()))
    if not names or len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{INDEX}: expected 1 to {_MAX_SHARDS} shards, got {len(names)}")
    for name in names:
        _check_shard_name(name)
    files = WeightFiles([folder / name for name in names])
    for tensor, name in shards.items():
        found = files.tensors.get(tensor)
        # an index may go on naming what was left out when the shards were written
        if found is None and (tensor in TIED_NAMES or is_skipped(tensor)):
            files.absent.append(tensor)
        elif found is None or found.where != name:
            files.close()
            raise CheckpointError(f"{INDEX}: tensor {tensor[:200]!r} is not in {name}")
    return files


def open_adapter(folder: Path, names: Sequence[str], saving: str) -> WeightFiles:
    """The weights of an adapter: the first of the files that is there. `saving` is the call that
    writes such a file."""
    for name in names:
        if is_there(folder / name):
            return WeightFiles([folder / name])
    raise explain(folder, names[0], saving)


def _check_shard_name(name: str) -> None:
    plain = name == os.path.basename(name) and "\\" not in name and "\0" not in name
    if not plain or not name.endswith(".safetensors"):
        raise CheckpointError(f"{INDEX}: shard {name[:200]!r} is not a safetensors file name")


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns
