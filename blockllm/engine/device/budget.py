"""The memory budget: weights first, the rest becomes KV pages. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blockllm.chain import SpanPlan
from blockllm.chain.spans import num_kv_layers
from blockllm.config import EngineSettings, parse_bytes
from blockllm.core import Block, Chain, LayerFunction, Tensor, keeps_kv
from blockllm.engine.kv.cache import KVShape
from blockllm.errors import OutOfMemory, UnsupportedModel

_AUTO_TOKENS = 4096  # per sequence: more is rarely used, and can be asked for with --memory


class KVClass(NamedTuple):
    """One page pool to be made: chains of one KV shape draw from it."""

    shape: KVShape
    layers_per_page: int
    models: tuple[str, ...]
    max_bundles: int  # of the deepest chain
    max_context: int
    num_pages: int

    def page_bytes(self, page_size: int, itemsize: int) -> int:
        return self.layers_per_page * 2 * page_size * math.prod(self.shape) * itemsize


class Precision(NamedTuple):
    """What models compute in, and what their matrices are kept in."""

    itemsize: int  # of the compute dtype
    keeps_narrow: bool = False  # a base's matrices of 16 bits stay so in memory

    def matrix_bytes(self, tensor: Tensor) -> int:
        """Bytes of a tensor of a layer."""
        stays = self.keeps_narrow and len(tensor.shape) == 2
        return min(tensor.nbytes, self.nbytes(tensor)) if stays else self.nbytes(tensor)

    def nbytes(self, tensor: Tensor) -> int:
        """Bytes of a tensor that is kept in the compute dtype; integers stay what they are."""
        if tensor.dtype in ("I8", "U8", "I32"):
            return tensor.nbytes
        return math.prod(tensor.shape) * self.itemsize


def weight_bytes(chains: Iterable[Chain], precision: Precision) -> int:
    """Bytes of the chains' distinct tensors in memory."""
    found: dict[str, int] = {}  # by hash
    for chain in chains:
        for entry in chain.entries:
            for layer in entry.block.layers:
                found.update((t.hash, precision.matrix_bytes(t)) for t in layer.tensors.values())
            if entry.delta:
                found.update((t.hash, precision.nbytes(t)) for t in entry.delta.tensors())
    return sum(found.values())


def plan_kv(
    plan: SpanPlan, settings: EngineSettings, precision: Precision, available: int
) -> list[KVClass]:
    """Divide what the budget leaves after the weights into one page pool per KV shape. The
    budget is the setting, or `available` bytes if that is `auto`.

    Raises OutOfMemory, saying which models would fit, or UnsupportedModel.
    """
    chains = [route.chain for route in plan.routes.values()]
    auto = settings.memory == "auto"
    budget = available if auto else parse_bytes(settings.memory)
    weights, itemsize = weight_bytes(chains, precision), precision.itemsize
    classes = _classes(chains, settings)
    least = sum(
        c.page_bytes(settings.page_size, itemsize) * _pages(c, settings, 1) for c in classes
    )
    if weights + least > budget:
        raise OutOfMemory(_what_fits(chains, precision, budget, weights, least))
    share = (budget - weights) // len(classes)
    return [
        c._replace(num_pages=_fill(c, settings, itemsize, share, limited=auto)) for c in classes
    ]


def _classes(chains: Sequence[Chain], settings: EngineSettings) -> list[KVClass]:
    by_shape: dict[KVShape, list[Chain]] = {}
    for chain in chains:
        by_shape.setdefault(_shape(chain), []).append(chain)
    classes = []
    for shape, members in by_shape.items():
        counts = [[num_kv_layers(e.block) for e in c.entries] for c in members]
        layers_per_page = math.gcd(*(n for chain in counts for n in chain))
        classes.append(
            KVClass(
                shape=shape,
                layers_per_page=layers_per_page,
                models=tuple(c.model for c in members),
                max_bundles=max(sum(c) for c in counts) // layers_per_page,
                max_context=max(context_of(c, settings) for c in members),
                num_pages=0,
            )
        )
    return classes


def context_of(chain: Chain, settings: EngineSettings) -> int:
    """Longest sequence of the model: its own limit, or the setting if that is smaller."""
    return min(chain.max_context, settings.max_context or chain.max_context)


def _shape(chain: Chain) -> KVShape:
    blocks: Iterable[Block] = (entry.block for entry in chain.entries)
    functions = [layer.function for block in blocks for layer in block.layers]
    shapes = {
        KVShape(f.num_kv_heads, f.head_dim)
        for f in functions
        if isinstance(f, LayerFunction) and keeps_kv(f)
    }
    if len(shapes) != 1:
        raise UnsupportedModel(f"{chain.model}: its layers need {len(shapes)} KV shapes, not one")
    return shapes.pop()


def _pages(kv: KVClass, settings: EngineSettings, sequences: int) -> int:
    tokens = min(kv.max_context, _AUTO_TOKENS) if sequences > 1 else min(kv.max_context, 256)
    return sequences * kv.max_bundles * -(-tokens // settings.page_size)


def _fill(kv: KVClass, settings: EngineSettings, itemsize: int, share: int, limited: bool) -> int:
    pages = share // kv.page_bytes(settings.page_size, itemsize) - 1  # the spare page
    if limited:
        pages = min(pages, _pages(kv, settings, max(2, settings.max_sequences)))
    return max(pages, _pages(kv, settings, 1))


def _what_fits(
    chains: Sequence[Chain],
    precision: Precision,
    budget: int,
    weights: int,
    least: int,
) -> str:
    fitting: list[Chain] = []
    for chain in chains:
        if weight_bytes([*fitting, chain], precision) + least <= budget:
            fitting.append(chain)
    names = ", ".join(chain.model for chain in fitting) or "none of them"
    return (
        f"memory: {len(chains)} model(s) need {_size(weights)} of weights and at least "
        f"{_size(least)} of KV pages, but the budget is {_size(budget)}. Within it would fit: "
        f"{names}. Raise --memory to {_size(weights + least)} or serve fewer models."
    )


def _size(count: int) -> str:
    """Rounded up, in a form that `--memory` takes."""
    unit, name = (1 << 20, "MiB") if count >= 64 << 20 else (1 << 10, "KiB")
    return f"{-(-count // unit)}{name}"
