"""Which swaps are thinkable, and what a set of them saves. Pure: layers in, swaps and bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

from blockllm.core import EmbedFunction, Function, HeadFunction, Layer, LayerFunction, Tensor
from blockllm.offline.equivalence.evidence import Mapping, Site, Swap

Models = dict[str, tuple[Layer, ...]]
_Unit = tuple[tuple[int, ...], tuple[int, ...]]  # positions in one model and in the other


def candidates(models: Models, reach: int = 0) -> list[Swap]:
    """Every pair of different layers of different models, in both directions, whose positions are
    at most `reach` apart. Layers that some model has both of are no pair.
    """
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Swap] = {}
    together = _together(models)
    for old_model, new_model in permutations(models, 2):
        for old, new in _units(models[old_model], models[new_model], reach):
            digests = (
                tuple(models[old_model][i].digest for i in old),
                tuple(models[new_model][i].digest for i in new),
            )
            pairs = list(zip(*digests, strict=True))
            if all(a != b and frozenset((a, b)) not in together for a, b in pairs):
                sites = Site(old_model, old[0]), Site(new_model, new[0])
                found.setdefault(digests, Swap(*digests, *sites))
    return list(found.values())


def fits(old: Function, new: Function) -> bool:
    """Whether a layer can run in the place of another: widths agree, and the shape of the KV."""
    return type(old) is type(new) and _ports(old) == _ports(new)


def exchanged(layers: Sequence[Layer], mapping: Mapping, known: dict[str, Layer]) -> list[Layer]:
    """A model's layers after the swaps."""
    return [known[mapping[x.digest]] if x.digest in mapping else x for x in layers]


def by_digest(models: Models) -> dict[str, Layer]:
    """Every layer once."""
    return {layer.digest: layer for layers in models.values() for layer in layers}


def num_bytes(models: Models, mapping: Mapping) -> int:
    """Bytes of the distinct tensors that the models need after the swaps."""
    known = by_digest(models)
    chains = (exchanged(layers, mapping, known) for layers in models.values())
    return sum({t.hash: t.nbytes for chain in chains for t in _tensors(chain)}.values())


def _ports(function: Function) -> tuple[int, ...]:
    if isinstance(function, LayerFunction):
        return function.hidden_size, function.num_kv_heads, function.head_dim
    assert isinstance(function, EmbedFunction | HeadFunction), "bridges are no candidates"
    return function.vocab_size, function.hidden_size


def _tensors(layers: Iterable[Layer]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer.tensors.values()]


def _together(models: Models) -> set[frozenset[str]]:
    return {
        frozenset((a.digest, b.digest))
        for layers in models.values()
        for a, b in permutations(layers, 2)
    }


def _units(old: Sequence[Layer], new: Sequence[Layer], reach: int) -> list[_Unit]:
    """Positions in both models that would be exchanged as one."""
    ends: list[_Unit] = [((0,), (0,)), ((len(old) - 1,), (len(new) - 1,))]
    if _is_tied(old) or _is_tied(new):
        ends = [((0, len(old) - 1), (0, len(new) - 1))]
    inner: list[_Unit] = [
        ((i,), (j,))
        for i, a in enumerate(old)
        for j, b in enumerate(new)
        if isinstance(a.function, LayerFunction)
        and isinstance(b.function, LayerFunction)
        and abs(i - j) <= reach
    ]
    return ends + inner


def _is_tied(layers: Sequence[Layer]) -> bool:
    first, last = layers[0], layers[-1]
    assert isinstance(first.function, EmbedFunction) and isinstance(last.function, HeadFunction)
    hashes = {tensor.hash for tensor in first.tensors.values()}
    return any(tensor.hash in hashes for tensor in last.tensors.values())
