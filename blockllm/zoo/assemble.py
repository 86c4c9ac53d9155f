"""Models made of layers that the zoo has and of new ones computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from blockllm.core import EmbedFunction, Function, HeadFunction, Layer, Measurement, Target, Tensor
from blockllm.errors import ZooError
from blockllm.zoo.assets import store_assets
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.folder import Folder
from blockllm.zoo.header import Entry
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record, Targets
from blockllm.zoo.snapshot import Snapshot, make_target
from blockllm.zoo.staging import Stage
from blockllm.zoo.writing import publish_model, stage_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Weights = Tensor | NDArray[Any]

_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int32": "I32"}


class NewLayer(NamedTuple):
    """A layer whose weights the zoo may not have yet, as arrays or as tensors of the zoo."""

    function: Function
    tensors: dict[str, Weights]


class NewTarget(NamedTuple):
    """A target (its tag and settings) whose tensors the zoo may not have yet."""

    kind: str
    parts: dict[str, Weights]
    settings: dict[str, Any]


AnyTargets = dict[int, dict[str, tuple[Target | NewTarget, ...]]]


class OwnFacts(NamedTuple):
    """What a model does not take from another: its ends, asset files, and measured loss."""

    eos_ids: tuple[int, ...]
    files: Mapping[str, Path]
    loss: Measurement


class Assembly(NamedTuple):
    """A model to make; see `Zoo.assemble`."""

    name: str
    like: str
    layers: tuple[Layer | NewLayer, ...]
    kind: str
    exact: bool
    root: str
    targets: AnyTargets | None
    parent: str | None
    own: OwnFacts | None


def assemble(folder: Folder, catalog: Catalog, assembly: Assembly) -> tuple[Record, int]:
    """Make the model under the zoo's write lock; returns its record and the bytes written.

    Raises a ZooError or OSError, and then folder and catalogue are as before.
    """

    def store(stage: Stage, snapshot: Snapshot, writer: PackWriter) -> Record:
        like = snapshot.record(assembly.like)
        layers = tuple(_store_layer(layer, writer) for layer in assembly.layers)
        _check(layers)
        parent = assembly.parent and snapshot.record(assembly.parent)
        # an adapter finds its base's files by itself
        assets = like.assets if not parent else {}
        if assembly.own:
            assets, moves = store_assets(assembly.own.files, folder, stage)
            writer.moves += moves
        return msgspec.structs.replace(
            like,
            name=assembly.name,
            kind=assembly.kind,
            parent=assembly.parent,
            root=assembly.root or assembly.like,
            layers=layers,
            targets=_store_targets(assembly.targets or {}, writer),
            assets=assets,
            eos_ids=assembly.own.eos_ids if assembly.own else like.eos_ids,
            exact=assembly.exact,
        )

    with folder.staging() as stage:
        staged = stage_model(folder, stage, catalog, assembly.name, partial(store, stage))
        publish_model(catalog, staged, assembly.own.loss if assembly.own else None)
    return staged.record, staged.writer.num_bytes


class ArraySource:
    """An array in memory as a tensor to be stored."""

    def __init__(self, array: NDArray[Any], where: str) -> None:
        dtype = _DTYPES.get(str(array.dtype))
        if dtype is None:
            raise ZooError(f"{where}: arrays of {array.dtype} cannot be stored")
        self._bytes = array.tobytes()  # in C order, whatever the array's
        self.entry = Entry(dtype, tuple(array.shape), 0, len(self._bytes))
        self.where = where

    def chunks(self) -> Iterator[memoryview]:
        """All bytes."""
        yield memoryview(self._bytes)


def _store_layer(layer: Layer | NewLayer, writer: PackWriter) -> Layer:
    if isinstance(layer, Layer):
        return layer
    tensors = _store(layer.tensors, writer)
    return Layer(layer_digest(layer.function, tensors), layer.function, tensors)


def _store_targets(targets: AnyTargets, writer: PackWriter) -> Targets:
    return {
        position: {
            module: tuple(_store_target(target, writer) for target in group)
            for module, group in modules.items()
        }
        for position, modules in targets.items()
    }


def _store_target(target: Target | NewTarget, writer: PackWriter) -> Target:
    if not isinstance(target, NewTarget):
        return target
    return make_target({"kind": target.kind, **target.settings}, _store(target.parts, writer))


def _store(weights: dict[str, Weights], writer: PackWriter) -> dict[str, Tensor]:
    new = {n: ArraySource(w, n) for n, w in weights.items() if not isinstance(w, Tensor)}
    return {**{n: w for n, w in weights.items() if isinstance(w, Tensor)}, **writer.add(new)}


def _check(layers: tuple[Layer, ...]) -> None:
    kinds = [type(layer.function) for layer in layers]
    inner = kinds[1:-1]
    if kinds[:1] != [EmbedFunction] or kinds[-1:] != [HeadFunction] or not inner:
        raise ZooError("a model is an embedding, layers and a head, in this order")
    if EmbedFunction in inner or HeadFunction in inner:
        raise ZooError("a model has one embedding and one head")
