"""Every weight in which a fine-tune differs from its base, in every codec, one weight at a time.

What was encoded waits in packs of a scratch folder, so that memory holds about one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.core import EmbedFunction, HeadFunction, Layer, Target, Tensor, target_tensors
from blockllm.engine.weights.loader import PackStore
from blockllm.engine.weights.packs import TORCH_DTYPES
from blockllm.errors import ZooError
from blockllm.offline.compress.choose import Option
from blockllm.offline.compress.codecs import arrays, codecs_for, encode
from blockllm.zoo.assemble import ArraySource, NewTarget
from blockllm.zoo.digest import tensor_hasher
from blockllm.zoo.packs import ALIGNMENT
from blockllm.zoo.reports import Progress
from blockllm.zoo.snapshot import make_target

Place = tuple[int, str]  # position of the layer, module
Targets = tuple[Target, ...]


class Weight(NamedTuple):
    """A weight that differs, all places that hold it (two where head and embedding are tied), and
    its options by codec; the first option is to drop the difference."""

    places: tuple[Place, ...]
    codecs: tuple[str, ...]
    targets: tuple[Targets, ...]
    options: tuple[Option, ...]

    @property
    def kind(self) -> str:
        """Which weights of other layers it is like."""
        return "+".join(module for _, module in self.places)


class Candidates(NamedTuple):
    """What a compressed fine-tune can be made of; `fixed` are norms and biases, kept whole."""

    weights: list[Weight]
    fixed: dict[Place, Targets]

    @property
    def fixed_bytes(self) -> int:
        return _num_bytes([t for group in self.fixed.values() for t in group])


class Scratch:
    """A folder of packs of arrays, one for each target; also a `PackStore`. Nothing is synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0
        root.mkdir()

    def keep(self, target: NewTarget) -> Target:
        """The target with its arrays in the folder."""
        pack = str(self._count)
        self._count += 1
        tensors = {}
        with self.pack_path(pack).open("wb") as file:
            for name, array in arrays(target).items():
                source = ArraySource(array, name)
                dtype, shape, _, nbytes = source.entry
                offset = file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                hasher = tensor_hasher(dtype, shape, nbytes)
                for chunk in source.chunks():
                    hasher.update(chunk)
                    file.write(chunk)
                tensors[name] = Tensor(hasher.hexdigest(), dtype, shape, pack, offset)
        return make_target({"kind": target.kind, **target.settings}, tensors)

    def pack_path(self, pack: str) -> Path:
        """The file that holds a pack's tensors at their offsets."""
        return self._root / pack


def read(store: PackStore, tensor: Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes, mapped from its pack; changes stay in memory."""
    path = store.pack_path(tensor.pack)
    return np.memmap(path, np.uint8, "c", tensor.offset, (tensor.nbytes,))


def make_candidates(
    store: PackStore,
    base: Sequence[Layer],
    tuned: Sequence[Layer],
    scratch: Scratch,
    progress: Progress,
) -> Candidates:
    """Encode the differences. Raises ZooError unless the layers are of one architecture, and for
    differences that are not finite."""
    if [layer.function for layer in base] != [layer.function for layer in tuned]:
        raise ZooError("this checkpoint has another shape than the base: it is no fine-tune of it")
    fixed: dict[Place, Targets] = {}
    places: dict[tuple[Tensor, Tensor, Tensor | None], list[Place]] = {}
    for position, (old, new) in enumerate(zip(base, tuned, strict=True)):
        for name, tensor in new.tensors.items():
            before = old.tensors.get(name)
            if before is not None and before.hash == tensor.hash:
                continue
            module, _, part = name.rpartition(".")
            place = position, module or _ALONE[type(old.function)]
            if len(tensor.shape) == 2 and before is not None:
                scale = old.tensors.get(f"{name.removesuffix('weight')}scale")
                places.setdefault((before, tensor, scale), []).append(place)
            else:
                kind = "bias" if part == "bias" else "norm"
                target = NewTarget(kind, {part: floats(store, tensor).numpy()}, {})
                fixed[place] = (*fixed.get(place, ()), scratch.keep(target))
    weights = []
    for done, ((before, tensor, scale), found) in enumerate(places.items(), 1):
        difference = floats(store, tensor) - _dense(store, before, scale)
        weights.append(_encode(difference, tuple(found), scratch))
        progress("encoding", done, len(places))
    return Candidates(weights, fixed)


_ALONE: dict[type, str] = {
    EmbedFunction: "embed",
    HeadFunction: "head",
}  # modules of the tensor `weight`


def _encode(difference: torch.Tensor, places: tuple[Place, ...], scratch: Scratch) -> Weight:
    if not bool(torch.isfinite(difference).all()):
        raise ZooError(f"{places[0][1]} of layer {places[0][0]}: differences are not finite")
    out, inputs = difference.shape
    embeds = any(module == "embed" for _, module in places)
    found = encode(difference, codecs_for((out, inputs), embeds))
    kept = [tuple(map(scratch.keep, targets)) for targets, _ in found.values()]
    dropped = Option(0, float(difference.square().sum(dtype=torch.float64)))
    errors = [error for _, error in found.values()]
    options = [Option(_num_bytes(t), e) for t, e in zip(kept, errors, strict=True)]
    names = ("dropped", *("+".join(codec) for codec in found))
    return Weight(places, names, ((), *kept), (dropped, *options))


def _num_bytes(targets: Sequence[Target]) -> int:
    return sum(tensor.nbytes for target in targets for tensor in target_tensors(target).values())


def floats(store: PackStore, tensor: Tensor) -> torch.Tensor:
    """A tensor of the store in fp32."""
    flat = torch.from_numpy(read(store, tensor)).view(TORCH_DTYPES[tensor.dtype])
    return flat.view(tensor.shape).float()


def _dense(store: PackStore, weight: Tensor, scale: Tensor | None) -> torch.Tensor:
    # an int8 base's weight is what its codes stand for
    dense = floats(store, weight)
    return dense if scale is None else dense * floats(store, scale)[:, None]
