"""What the page shows of each model, read from its card and chain. No markup here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from blockllm.core import Chain, ChainEntry, Layer, ModelCard, Tensor


class LayerFacts(NamedTuple):
    """One layer of one model. `riders`: all models that have it, this one too."""

    digest: str
    kind: str
    nbytes: int
    riders: tuple[str, ...]
    has_delta: bool


class ModelFacts(NamedTuple):
    """One model. `separate`: bytes of a copy of its own; `delta`: of those, its deltas."""

    card: ModelCard
    tier: str
    separate: int
    delta: int
    layers: tuple[LayerFacts, ...]


def read_models(cards: Iterable[ModelCard], chains: Mapping[str, Chain]) -> tuple[ModelFacts, ...]:
    """The models of these cards; a layer's riders are those among the chains."""
    riders: dict[str, dict[str, None]] = {}
    for name, chain in chains.items():
        for layer in layers_of(chain):
            riders.setdefault(layer.digest, {})[name] = None
    shared = {digest: tuple(names) for digest, names in riders.items()}
    return tuple(_model(card, chains[card.name], shared) for card in cards)


def layers_of(chain: Chain) -> list[Layer]:
    """A model's layers in order, cut as its blocks are."""
    return [layer for entry in chain.entries for layer in entry.block.layers]


def tensors_of(chain: Chain) -> dict[str, Tensor]:
    """A model's distinct tensors by hash, deltas included."""
    found = {t.hash: t for layer in layers_of(chain) for t in layer.tensors.values()}
    return found | _delta_tensors(chain)


def tier_of(card: ModelCard, has_delta: bool) -> str:
    """The rung of the sharing ladder that a model stands on."""
    if card.kind in ("compressed", "equivalent", "stitched"):
        return card.kind
    if card.format == "int8":
        return "rounded"
    if not card.exact or card.kind == "assembled":
        return "other"
    return "delta" if has_delta else "exact"


def _delta_tensors(chain: Chain) -> dict[str, Tensor]:
    return {t.hash: t for e in chain.entries if e.delta for t in e.delta.tensors()}


def _model(card: ModelCard, chain: Chain, riders: Mapping[str, tuple[str, ...]]) -> ModelFacts:
    deltas = _delta_tensors(chain)
    delta = sum(tensor.nbytes for tensor in deltas.values())
    tier = tier_of(card, bool(deltas))
    total = sum(tensor.nbytes for tensor in tensors_of(chain).values())
    # a compressed fine-tune stands for one in full: its own copy would have no delta
    separate = total - delta if tier == "compressed" else total
    layers = tuple(layer for entry in chain.entries for layer in _layers(entry, riders))
    return ModelFacts(card, tier, separate, delta, layers)


def _layers(entry: ChainEntry, riders: Mapping[str, tuple[str, ...]]) -> Iterable[LayerFacts]:
    targets = entry.delta.targets if entry.delta else ()
    changed = {int(key.partition(".")[0]) for key in targets}
    for index, layer in enumerate(entry.block.layers):
        kind = str(layer.function.__struct_config__.tag)
        nbytes = sum(tensor.nbytes for tensor in layer.tensors.values())
        yield LayerFacts(layer.digest, kind, nbytes, riders[layer.digest], index in changed)
