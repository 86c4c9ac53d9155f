"""What the page shows, read from a zoo and added up. No markup here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from blockllm.chain import plan_spans
from blockllm.core import Chain, Measurement, Tensor
from blockllm.engine.costs.profiles import KIND, SpanProfile, shapes_of
from blockllm.offline.report.groups import Group, make_groups
from blockllm.offline.report.models import ModelFacts, layers_of, read_models, tensors_of
from blockllm.zoo import Zoo

TIERS = {
    "exact": "layers with equal bytes are one",
    "delta": "an adapter over a base that is there",
    "compressed": "a full fine-tune as a small lossy delta",
    "equivalent": "layers replaced by others that do nearly the same",
    "stitched": "layers of another model through a small bridge",
    "rounded": "weights in int8",
    "other": "assembled in another way: drafts, surrogates",
}
_PAIRED = ("equivalence", "surrogate")  # findings about two layers
# numbers of such a finding that are shown where present, and which of two is the worse
_WORST: dict[str, Callable[[float, float], float]] = {"kl": max, "cosine": min, "agreement": min}


class TierFacts(NamedTuple):
    """The models of one tier. `stored`: bytes that they need beyond the tiers before."""

    tier: str
    models: tuple[str, ...]
    separate: int
    stored: int


class PairMap(NamedTuple):
    """One number about pairs of layers of two models: values[row][column], None where unknown."""

    kind: str
    number: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


class Facts(NamedTuple):
    """Everything on the page."""

    models: tuple[ModelFacts, ...]
    stored: int  # bytes of distinct tensors
    separate: int  # a copy for every model
    files: int  # a file for every checkpoint and adapter: adapters share their base
    groups: tuple[Group, ...]
    tiers: tuple[TierFacts, ...]
    losses: tuple[Measurement, ...]
    unmeasured: tuple[str, ...]  # lossy models without a measurement
    pairs: tuple[PairMap, ...]
    profiles: tuple[tuple[SpanProfile, tuple[str, ...]], ...]  # with the models of such spans


def collect(zoo: Zoo) -> Facts:
    """Read a zoo once; every number of the page follows."""
    with zoo.moment() as moment:
        cards = {card.name: card for card in moment.cards()}
        chains = moment.chains(cards)
    tensors = {name: tensors_of(chains[name]) for name in cards}
    models = read_models(cards.values(), chains)
    return Facts(
        models=models,
        stored=_total(tensors.values()),
        separate=sum(model.separate for model in models),
        files=sum(m.delta if m.tier == "delta" else m.separate for m in models),
        groups=make_groups(models, tensors),
        tiers=_tiers(models, tensors),
        losses=tuple(loss for card in cards.values() for loss in card.loss),
        unmeasured=tuple(c.name for c in cards.values() if not c.exact and not c.loss),
        pairs=tuple(_pairs(zoo, chains)),
        profiles=tuple(_profiles(zoo, chains)),
    )


def _total(groups: Iterable[dict[str, Tensor]]) -> int:
    distinct = {key: tensor.nbytes for group in groups for key, tensor in group.items()}
    return sum(distinct.values())


def _tiers(
    models: tuple[ModelFacts, ...], tensors: dict[str, dict[str, Tensor]]
) -> tuple[TierFacts, ...]:
    counted: dict[str, Tensor] = {}
    found = []
    for tier in TIERS:
        members = [model for model in models if model.tier == tier]
        before = _total([counted])
        for model in members:
            counted |= tensors[model.card.name]
        if members:
            names = tuple(model.card.name for model in members)
            separate = sum(model.separate for model in members)
            found.append(TierFacts(tier, names, separate, _total([counted]) - before))
    return tuple(found)


def _pairs(zoo: Zoo, chains: dict[str, Chain]) -> Iterable[PairMap]:
    """One map for each kind, number and pair of models; a layer goes with the first that has it."""
    where: dict[str, tuple[str, int]] = {}
    for name, chain in chains.items():
        for position, layer in enumerate(layers_of(chain)):
            where.setdefault(layer.digest, (name, position))
    maps: dict[tuple[str, str, str, str], dict[tuple[int, int], float]] = {}
    for kind in _PAIRED:
        for (subject, object), value in zoo.findings(kind, dict).items():
            if subject in where and object in where:
                (left, row), (right, column) = where[subject], where[object]
                for number, found in numbers_in(value).items():
                    maps.setdefault((kind, number, left, right), {})[row, column] = found
    for (kind, number, left, right), cells in maps.items():
        rows, columns = (sorted(set(places)) for places in zip(*cells, strict=True))
        yield PairMap(
            kind,
            number,
            tuple(f"{left} {row}" for row in rows),
            tuple(f"{right} {column}" for column in columns),
            tuple(tuple(cells.get((row, column)) for column in columns) for row in rows),
        )


def numbers_in(value: Mapping[str, object], part: str = "") -> dict[str, float]:
    """The comparable numbers of a finding, named by the part they stand in: `lens kl`. Of several
    in one part (one for each model, say) it is the worst."""
    found: dict[str, float] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            deeper = numbers_in(inner, part or name)
        elif name in _WORST and isinstance(inner, int | float):
            deeper = {f"{part} {name}".strip(): float(inner)}
        else:
            continue
        for label, number in deeper.items():
            worst = _WORST[label.rpartition(" ")[2]]
            found[label] = worst(found[label], number) if label in found else number
    return found


def _profiles(zoo: Zoo, chains: dict[str, Chain]) -> Iterable[tuple[SpanProfile, tuple[str, ...]]]:
    plan = plan_spans(chains.values())
    riders: dict[str, dict[str, None]] = {}
    for span, shape in zip(plan.spans, shapes_of(plan), strict=True):
        riders.setdefault(shape, {}).update(dict.fromkeys(span.models))
    for profile in zoo.findings(KIND, SpanProfile).values():
        yield profile, tuple(riders.get(profile.shape, ()))
