"""One consistent state of the catalogue: chains and cards follow from it.

Each part is read when it is first asked for, so that a command pays for the models it needs. What
depends on all models, as blocks do, follows from their outlines.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, get_args

import msgspec

from blockllm.core import Block, Chain, EmbedFunction, Function, HeadFunction, Layer, Target, Tensor
from blockllm.errors import CorruptStore, UnknownModel
from blockllm.zoo.blocks import Blocks
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.outline import Outline, read_outlines
from blockllm.zoo.records import Record, Targets
from blockllm.zoo.rows import (
    MODEL_COLUMNS,
    AssetRow,
    ModelRow,
    TargetRow,
    TokenIds,
    check,
    decode,
    make_tensor,
)
from blockllm.zoo.seals import check_model

_TENSOR = "tensor.hash, tensor.dtype, tensor.shape, tensor.pack, tensor.offset"
_KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Target)}


class Snapshot:
    """The models of a zoo at one moment; lives as long as the connection's transaction. Equal
    layers and blocks are one object.

    What is damaged is never given out: `damage` says what of tensors and layers is, `damaged` which
    models are.
    """

    def __init__(self, connection: sqlite3.Connection, sealed: bool = True) -> None:
        """Not `sealed`: the catalogue is one of a format that had no checksums."""
        self._connection = connection
        self._sealed = sealed
        self._read: dict[str, Record] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All sound tensors by hash, also those of no model."""
        return self._tensors[0]

    @property
    def layers(self) -> dict[str, Layer]:
        """All sound layers by digest."""
        return self._layers[0]

    @property
    def damage(self) -> dict[str, str]:
        """Why other tensors and layers cannot be read, by what they are."""
        return {**self._tensors[1], **self._layers[1]}

    @cached_property
    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        found, damage = {}, {}
        for row in self._connection.execute(f"SELECT {_TENSOR} FROM tensor"):
            try:
                found[row[0]] = make_tensor(*row)
            except CorruptStore as error:
                damage[f"tensor {str(row[0])[:80]!r}"] = str(error)
        return found, damage

    @cached_property
    def _layers(self) -> tuple[dict[str, Layer], dict[str, str]]:
        parts, lacking = _read_parts(self._connection)
        found, damage = {}, {}
        for digest, function in self._connection.execute("SELECT digest, function FROM layer"):
            try:
                found[digest] = _layer(digest, function, parts.get(digest, {}))
            except CorruptStore as error:
                damage[f"layer {str(digest)[:80]!r}"] = lacking.get(digest) or str(error)
        return found, damage

    @property
    def records(self) -> dict[str, Record]:
        """All models that can be read, oldest first."""
        return {name: self.record(name) for name in self.outlines if name not in self.damaged}

    @cached_property
    def damaged(self) -> dict[str, str]:
        """Why models cannot be read, by name."""
        found = dict(self._outlines[1])
        for name in self.outlines:
            try:
                self.assets(name)  # reads the models it is based on, too
            except CorruptStore as error:
                found[name] = str(error)
            except UnknownModel:  # the table has it, the index of names does not
                found[name] = f"model {name!r} is damaged: the catalogue's index lacks its name"
        return found

    @property
    def full_roots(self) -> dict[str, str]:
        """Where the full checkpoints were added from, by name."""
        rows = self._connection.execute("SELECT name, root FROM model WHERE kind = 'full'")
        return {name: root for name, root in rows if isinstance(name, str)}

    @property
    def outlines(self) -> dict[str, Outline]:
        """All models in brief, oldest first, whose layers are sound."""
        return self._outlines[0]

    @property
    def unread(self) -> dict[str, str]:
        """Why models have no outline, by name."""
        return self._outlines[1]

    @cached_property
    def _outlines(self) -> tuple[dict[str, Outline], dict[str, str]]:
        return read_outlines(self._connection, self._stack)

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.outlines.values(), self.layers)

    def record(self, name: str) -> Record:
        """What was added under a name; raises UnknownModel."""
        if name not in self._read:
            self._read[name] = self._read_record(name)
        return self._read[name]

    def assets(self, name: str) -> list[dict[str, str]]:
        """Stored names of a model's own asset files, then of what it is based on, and so on."""
        found: dict[str, dict[str, str]] = {}
        parent: str | None = name
        while parent is not None:
            if parent in found:
                raise CorruptStore(f"model {parent!r} is damaged: it is based on itself")
            record = self.record(parent)
            found[parent] = record.assets
            parent = record.parent
        return list(found.values())

    def chain(self, name: str) -> Chain:
        """The model as blocks and deltas; raises UnknownModel."""
        record = self.record(name)
        if name in self.unread:
            raise CorruptStore(self.unread[name])
        entries = self._blocks.entries(record)
        return Chain(name, entries, record.max_context, record.eos_ids, record.parent)

    def blocks(self, name: str) -> list[Block]:
        """The model's blocks in order."""
        return self._blocks.of(self.outlines[name])

    @cached_property
    def riders(self) -> Counter[str]:
        """How many models have a block, by its id."""
        models = Counter(self.outlines.values())
        found: Counter[str] = Counter()
        for outline, count in models.items():
            for block in dict.fromkeys(block.id for block in self._blocks.of(outline)):
                found[block] += count
        return found

    def _read_record(self, name: str) -> Record:
        sql = f"SELECT {MODEL_COLUMNS} WHERE m.name = ?"
        row = self._connection.execute(sql, [name]).fetchone()
        if row is None:
            raise UnknownModel(f"the zoo has no model named {name!r}")
        try:
            return self._record(check(row, ModelRow, "model"))
        except CorruptStore as error:
            raise CorruptStore(
                f"model {name!r} is damaged: {error}; remove it and add it again"
            ) from error

    def _record(self, row: ModelRow) -> Record:
        if self._sealed:
            check_model(self._connection, row.id, row.seal)
        if row.parent_id is not None and row.parent is None:
            raise CorruptStore("the model that it is based on is not there")
        sql = "SELECT layer FROM model_layer WHERE model = ? ORDER BY position"
        layers = self._stack([digest for (digest,) in self._connection.execute(sql, [row.id])])
        sql = "SELECT file, name FROM asset WHERE model = ?"
        found = self._connection.execute(sql, [row.id])
        assets = [check(each, AssetRow, "asset") for each in found]
        return Record(
            name=row.name,
            kind=row.kind,
            family=row.family,
            parent=row.parent,
            root=row.root,
            dtype=row.dtype,
            max_context=row.max_context,
            eos_ids=decode(row.eos_ids, TokenIds, "eos_ids"),
            layers=layers,
            targets=_read_targets(self._connection, row.id, len(layers)),
            assets={asset.file: asset.name for asset in assets},
            exact=bool(row.exact),
        )

    def _stack(self, digests: Sequence[str]) -> tuple[Layer, ...]:
        """The layers of a model. Raises CorruptStore unless they make one."""
        missing = next((digest for digest in digests if digest not in self.layers), None)
        if missing is not None:
            raise CorruptStore(f"its layer {str(missing)[:80]!r} is damaged or not there")
        layers = tuple(self.layers[digest] for digest in digests)
        ends = [type(layer.function) for layer in (*layers[:1], *layers[1:][-1:])]
        if ends != [EmbedFunction, HeadFunction]:
            raise CorruptStore("its layers do not begin with an embedding and end with a head")
        return layers


_function: msgspec.json.Decoder[Function] = msgspec.json.Decoder(Function)


def _layer(digest: str, text: str, tensors: dict[str, Tensor]) -> Layer:
    """A layer of its row and tensors. Raises CorruptStore unless they are what its digest says."""
    try:
        function = _function.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError) as error:
        raise CorruptStore(f"its function: {error}") from error
    if layer_digest(function, tensors) != digest:
        raise CorruptStore("its function or tensors were changed")
    return Layer(digest, function, tensors)


def _read_parts(
    connection: sqlite3.Connection,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The tensors of each layer by name, and why layers lack one of theirs."""
    parts: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    damage: dict[str, str] = {}
    sql = f"SELECT layer, name, {_TENSOR} FROM layer_tensor JOIN tensor ON hash = tensor"
    for digest, name, *row in connection.execute(sql):
        try:
            if row[0] not in tensors:
                tensors[row[0]] = make_tensor(*row)
            parts.setdefault(digest, {})[str(name)] = tensors[row[0]]
        except CorruptStore as error:
            damage[digest] = str(error)
    return parts, damage


def _read_targets(connection: sqlite3.Connection, model: int, num_layers: int) -> Targets:
    parts: dict[int, dict[str, Tensor]] = {}
    sql = (
        f"SELECT target, part, {_TENSOR} FROM target JOIN target_tensor ON target = target.id"
        " JOIN tensor ON hash = tensor WHERE model = ?"
    )
    for target, part, *row in connection.execute(sql, [model]):
        parts.setdefault(target, {})[str(part)] = make_tensor(*row)
    targets: Targets = {}
    sql = "SELECT id, position, module, value FROM target WHERE model = ? ORDER BY place"
    for values in connection.execute(sql, [model]):
        found = check(values, TargetRow, "target")
        if found.position >= num_layers:
            raise CorruptStore(f"table target, row {found.id}: there is no layer {found.position}")
        modules = targets.setdefault(found.position, {})
        made = _target(found, parts.get(found.id, {}))
        modules[found.module] = (*modules.get(found.module, ()), made)
    return targets


def _target(row: TargetRow, parts: dict[str, Tensor]) -> Target:
    where = f"table target, row {row.id}"
    try:
        return make_target(decode(row.value, dict[str, Any], where), parts)
    except msgspec.ValidationError as error:
        raise CorruptStore(f"{where}: {error}") from error


def make_target(settings: dict[str, Any], parts: dict[str, Tensor]) -> Target:
    """A target of its settings and tensors."""
    # converting to the whole union takes thirty times as long
    kind = _KINDS.get(str(settings.get("kind")), Target)
    target: Target = msgspec.convert({**settings, **parts}, kind)
    return target
