"""Names that follow from content: tensors, layers, blocks, deltas, packs (BLAKE3, hexadecimal)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import msgspec
from blake3 import blake3

from blockllm.core import Function, Target, Tensor, target_tensors

# below this size starting threads costs more than they save
_THREADED_BYTES = 1 << 20


def tensor_hasher(dtype: str, shape: tuple[int, ...], nbytes: int) -> blake3:
    """A hasher that knows dtype and shape and waits for the tensor's bytes."""
    threads = blake3.AUTO if nbytes >= _THREADED_BYTES else 1
    hasher = blake3(max_threads=threads)
    hasher.update(f"tensor {dtype} {list(shape)}\n".encode())
    return hasher


def layer_digest(function: Function, tensors: dict[str, Tensor]) -> str:
    """Name of a layer: what it computes and with which tensors."""
    lines = [f"{name} {tensor.hash}" for name, tensor in sorted(tensors.items())]
    return _digest("layer", [canonical(function), *lines])


def block_id(layer_digests: Iterable[str]) -> str:
    """Name of a block: its layers in order."""
    return _digest("block", layer_digests)


def delta_id(targets: dict[str, tuple[Target, ...]]) -> str:
    """Name of a delta: its targets with their tensors and settings."""
    lines = []
    for key, group in sorted(targets.items()):
        for target in group:
            parts = [f"{part}={tensor.hash}" for part, tensor in target_tensors(target).items()]
            lines.append(" ".join([key, target_settings(target), *parts]))
    return _digest("delta", lines)


def target_settings(target: Target) -> str:
    """All of a target but its tensors, as JSON."""
    parts = target_tensors(target)
    kept = {
        name: value
        for name in target.__struct_fields__
        if name not in parts and (value := getattr(target, name)) is not None
    }
    return msgspec.json.encode({"kind": target.__struct_config__.tag, **kept}).decode()


def pack_name(places: Iterable[tuple[int, str]]) -> str:
    """Name of a pack: (offset, tensor hash) in file order; bytes between tensors are zero."""
    return _digest("pack", [f"{offset} {tensor}" for offset, tensor in places])


def _digest(kind: str, lines: Iterable[str]) -> str:
    return str(blake3("\n".join([kind, *lines]).encode()).hexdigest())


def canonical(function: Function) -> str:
    """A function as JSON that stays the same when a field with a default is added."""
    tag = function.__struct_config__.tag
    values = {"kind": tag, **_without_defaults(function)}
    return msgspec.json.encode(values, order="sorted").decode()


def _without_defaults(struct: msgspec.Struct) -> dict[str, Any]:
    # defaults mean "feature absent": a field added later leaves the digests of older layers alone
    values = {}
    for field in _fields(type(struct)):
        value = getattr(struct, field.name)
        if value != field.default:
            nested = isinstance(value, msgspec.Struct)
            values[field.name] = _without_defaults(value) if nested else value
    return values


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)  # resolves type hints, which takes as long as all the rest
