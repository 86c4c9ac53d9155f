"""Checking that every stored byte is what its name promises."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from blockllm.core import Tensor
from blockllm.errors import CheckpointError
from blockllm.zoo.assets import asset_name, find_files
from blockllm.zoo.digest import pack_name
from blockllm.zoo.folder import Folder
from blockllm.zoo.packs import ALIGNMENT, holds
from blockllm.zoo.records import Record
from blockllm.zoo.reports import Problem, Progress, VerifyReport
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.soundness import find_problems
from blockllm.zoo.text.facts import Probe, read_facts


def verify(
    folder: Folder, connection: sqlite3.Connection, progress: Progress, probe: Probe | None
) -> VerifyReport:
    """Check the catalogue, hash all tensors and assets again, look between tensors for anything but
    zeros, and derive the names of packs and layers anew.
    """
    snapshot = Snapshot(connection)
    problems = list(find_problems(connection, snapshot))
    try:
        return _verify_files(folder, snapshot, problems, progress, probe)
    except sqlite3.DatabaseError:
        if not problems:
            raise
        return VerifyReport(0, 0, 0, tuple(problems))


def _verify_files(
    folder: Folder,
    snapshot: Snapshot,
    problems: list[Problem],
    progress: Progress,
    probe: Probe | None,
) -> VerifyReport:
    packs: dict[str, list[Tensor]] = {}
    for tensor in snapshot.tensors.values():
        packs.setdefault(tensor.pack, []).append(tensor)
    total = sum(tensor.nbytes for tensor in snapshot.tensors.values())
    checker = _PackChecker(folder)
    for pack, tensors in packs.items():
        progress("verifying", checker.num_bytes, total)
        for what, damaged in checker.check(pack, sorted(tensors, key=lambda t: t.offset)):
            problems.append(Problem(f"pack {pack}", what, _users(snapshot, damaged)))
    broken = list(_check_assets(folder, snapshot))
    problems += broken
    problems += _check_texts(folder, snapshot, {problem.where for problem in broken}, probe)
    return VerifyReport(len(packs), len(snapshot.tensors), checker.num_bytes, tuple(problems))


class _PackChecker:
    """Reads packs; `num_bytes` counts the tensors' bytes read."""

    def __init__(self, folder: Folder) -> None:
        self.num_bytes = 0
        self._folder = folder

    def check(self, pack: str, tensors: list[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
        """Everything wrong with a pack, each with the tensors it damages."""
        if pack_name((tensor.offset, tensor.hash) for tensor in tensors) != pack:
            yield "the catalogue's list of its tensors is damaged", tensors
        try:
            descriptor = os.open(self._folder.pack(pack), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            yield str(error.strerror), tensors
            return
        try:
            yield from self._check_bytes(descriptor, tensors)
        finally:
            os.close(descriptor)

    def _check_bytes(
        self, descriptor: int, tensors: list[Tensor]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        position = 0
        for tensor in tensors:
            # a damaged catalogue may let tensors overlap, or lie far apart
            length = min(max(tensor.offset - position, 0), ALIGNMENT)
            gap = os.pread(descriptor, length, position)
            if gap.strip(b"\0"):
                yield f"bytes before offset {tensor.offset} are not zero", [tensor]
            self.num_bytes += tensor.nbytes
            if not holds(descriptor, tensor):
                yield f"tensor {tensor.hash} at offset {tensor.offset} is damaged", [tensor]
            position = tensor.offset + tensor.nbytes
        size = os.fstat(descriptor).st_size
        if size != position:
            damaged = [tensor for tensor in tensors if tensor.offset + tensor.nbytes > size]
            yield f"has {size} bytes instead of {position}", damaged or tensors


def _check_assets(folder: Folder, snapshot: Snapshot) -> Iterator[Problem]:
    users: dict[str, list[str]] = {}
    for record in snapshot.records.values():
        for name in record.assets.values():
            users.setdefault(name, []).append(record.name)
    for name, models in users.items():
        path = folder.asset(name)
        if not path.exists() or asset_name(path.read_bytes(), path.suffix) != name:
            yield Problem(_asset(name), "missing or damaged", tuple(models))


def _check_texts(
    folder: Folder, snapshot: Snapshot, damaged: set[str], probe: Probe | None
) -> Iterator[Problem]:
    """Tokenizers and templates that cannot be read, though they are as they were stored."""
    users: dict[tuple[str, tuple[tuple[str, Path], ...]], list[str]] = {}
    for record in snapshot.records.values():
        files = find_files({}, snapshot.assets(record.name), folder)
        users.setdefault((record.family, tuple(files.items())), []).append(record.name)
    for (family, items), models in users.items():
        if damaged.isdisjoint(_asset(path.name) for _, path in items):
            try:
                read_facts(dict(items), dict(items), family, probe)
            except CheckpointError as error:
                yield Problem("text files", str(error), tuple(models))


def _asset(name: str) -> str:
    return f"asset {name}"


def _users(snapshot: Snapshot, tensors: list[Tensor]) -> tuple[str, ...]:
    damaged = {tensor.hash for tensor in tensors}

    def needs(record: Record) -> bool:
        return not damaged.isdisjoint(record.tensors())

    return tuple(name for name, record in snapshot.records.items() if needs(record))
