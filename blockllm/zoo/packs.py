"""Packs: files of raw tensors, each at a multiple of 64 bytes, zeros between them.

┌ tensor ┬ 0 ┬ tensor ┬ 0 ┬ tensor ┐      named by digest.pack_name, never changed
0        …   64·i     …   64·j     end
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from blockllm.core import Tensor
from blockllm.errors import CheckpointError, CorruptStore
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.digest import pack_name, tensor_hasher
from blockllm.zoo.folder import Folder
from blockllm.zoo.header import Entry
from blockllm.zoo.room import check_room
from blockllm.zoo.staging import Stage

Key = TypeVar("Key", bound=Hashable)

# a cache line, and the widest vector a CPU kernel loads
ALIGNMENT = 64


class Readable(Protocol, Hashable):
    """A tensor to be stored. Equal ones have equal bytes, which can be read several times."""

    @property
    def entry(self) -> Entry: ...
    @property
    def where(self) -> str: ...
    def chunks(self) -> Iterator[memoryview]: ...


class _Placed(NamedTuple):
    source: Readable
    hash: str
    offset: int


class PackWriter:
    """Turns tensors of a checkpoint into tensors of the zoo, writing only what is new.

    `find` says where a tensor lies that the zoo has; `advance` is told the bytes read. The packs
    lie in `stage` until `moves` are carried out; `num_bytes` counts what was written, `known` are
    tensors that the zoo has.
    """

    def __init__(
        self,
        folder: Folder,
        stage: Stage,
        find: Callable[[str], Tensor | None],
        advance: Callable[[int], None],
    ) -> None:
        self.moves: list[tuple[Path, Path]] = []
        self.num_bytes = 0
        self._folder = folder
        self._stage = stage
        self._find = find
        self._advance = advance
        self.known: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        self._hashes: dict[Readable, str] = {}

    def pack_path(self, pack: str) -> Path:
        """The file of a pack that the zoo had before."""
        return self._folder.pack(pack)

    def add(self, sources: Mapping[Key, Readable]) -> dict[Key, Tensor]:
        """The zoo's tensors for `sources`, key by key; new ones become one pack in this order."""
        hashes = {key: self._hash(source) for key, source in sources.items()}
        fresh: dict[str, Readable] = {}
        for key, name in hashes.items():
            if not self._known(name, sources[key].entry):
                fresh.setdefault(name, sources[key])
        if fresh:
            self._write(fresh)
        return {key: self._added[name] for key, name in hashes.items()}

    def _known(self, name: str, entry: Entry) -> bool:
        if name in self._added:
            return True
        tensor = self._find(name)
        if tensor is None:
            return False
        path = self._folder.pack(tensor.pack)
        is_same = (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)  # the hash covers both
        if not (is_same and path.exists() and path.stat().st_size >= tensor.offset + tensor.nbytes):
            raise CorruptStore(
                f"pack {tensor.pack} is damaged; `zoo verify` names the models to remove, then "
                "`zoo gc` and add them again"
            )
        self._added[name] = self.known[name] = tensor
        return True

    def _hash(self, source: Readable) -> str:
        if source not in self._hashes:
            self._hashes[source] = self._read(source, None)
            self._advance(source.entry.nbytes)
        return self._hashes[source]

    def _read(self, source: Readable, target: int | None) -> str:
        dtype, shape, _, nbytes = source.entry
        hasher = tensor_hasher(dtype, shape, nbytes)
        for chunk in source.chunks():
            hasher.update(chunk)
            if target is not None:
                _write_all(target, chunk)
        return str(hasher.hexdigest())

    def _write(self, fresh: dict[str, Readable]) -> None:
        check_room(self._stage.root, sum(s.entry.nbytes + ALIGNMENT for s in fresh.values()))
        temporary = self._stage.new_temporary()
        placed: list[_Placed] = []
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            position = 0
            for name, source in fresh.items():
                offset = -(-position // ALIGNMENT) * ALIGNMENT
                _write_all(descriptor, memoryview(bytes(offset - position)))
                # read twice: shared tensors, the common case, are never written
                if self._read(source, descriptor) != name:
                    raise CheckpointError(f"{source.where}: changed while being read; try again")
                placed.append(_Placed(source, name, offset))
                position = offset + source.entry.nbytes
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.num_bytes += position
        self._name(temporary, placed)

    def _name(self, temporary: Path, placed: list[_Placed]) -> None:
        pack = pack_name((item.offset, item.hash) for item in placed)
        self.moves.append((temporary, self._folder.pack(pack)))
        for source, name, offset in placed:
            dtype, shape, _, _ = source.entry
            self._added[name] = Tensor(name, dtype, shape, pack, offset)


def has(path: Path, tensor: Tensor) -> bool:
    """Whether the pack at this path has a tensor's bytes where it should."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return holds(descriptor, tensor)
    finally:
        os.close(descriptor)


def holds(descriptor: int, tensor: Tensor) -> bool:
    """Whether the pack in this open file has a tensor's bytes where it should."""
    hasher = tensor_hasher(tensor.dtype, tensor.shape, tensor.nbytes)
    entry = Entry(tensor.dtype, tensor.shape, tensor.offset, tensor.nbytes)
    try:
        for chunk in Source(descriptor, entry, tensor.pack).chunks():
            hasher.update(chunk)
    except CheckpointError:
        return False
    return str(hasher.hexdigest()) == tensor.hash


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
