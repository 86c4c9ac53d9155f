"""Models in groups that share weights, and in each group the models that are alike.

A page about 200 adapters of one base would be 200 equal rows; here they are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from blockllm.core import Tensor
from blockllm.offline.report.models import ModelFacts

MOST_COMPARED = 40  # sets of alike models of a group that are compared in pairs


class ModelGroup(NamedTuple):
    """Models with the same layers and deltas at the same of them."""

    models: tuple[ModelFacts, ...]

    @property
    def label(self) -> str:
        """`lora-1` or `lora-1 +35`."""
        first, others = self.models[0].card.name, len(self.models) - 1
        return f"{first} +{others}" if others else first


class Group(NamedTuple):
    """Models of which each shares a layer or its base with another of them, or one alone.

    `models`: the bases first, then by own bytes, most first. `alike`: those with a base first, then
    by the number of models. `shared`: [alike][alike] bytes of tensors that the first models of both
    have, for the first MOST_COMPARED.
    """

    name: str
    models: tuple[ModelFacts, ...]
    stored: int
    alike: tuple[ModelGroup, ...]
    shared: tuple[tuple[int, ...], ...]


def make_groups(
    models: Sequence[ModelFacts], tensors: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Group, ...]:
    """All groups, those of most models first; `tensors` by model and hash."""
    found = [_group(members, tensors) for members in _connected(models)]
    return tuple(sorted(found, key=lambda group: (-len(group.models), -group.stored)))


def _connected(models: Sequence[ModelFacts]) -> Iterable[list[ModelFacts]]:
    leader = {model.card.name: model.card.name for model in models}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    first_with: dict[str, str] = {}
    for model in models:
        name, parent = model.card.name, model.card.parent
        others = [first_with.setdefault(layer.digest, name) for layer in model.layers]
        for other in (*others, *([parent] if parent in leader else [])):
            leader[find(name)] = find(other)
    groups: dict[str, list[ModelFacts]] = {}
    for model in models:
        groups.setdefault(find(model.card.name), []).append(model)
    return groups.values()


def _group(members: list[ModelFacts], tensors: Mapping[str, Mapping[str, Tensor]]) -> Group:
    children = [model.card.parent for model in members]
    bases = [model for model in members if model.card.name in children]
    others = [model for model in members if model.card.name not in children]
    bases.sort(key=lambda model: -children.count(model.card.name))
    others.sort(key=lambda model: (-model.card.own_bytes, model.card.name))
    models = (*bases, *others)
    alike = (*_alike(bases), *sorted(_alike(others), key=lambda each: -len(each.models)))
    compared = [tensors[each.models[0].card.name] for each in alike[:MOST_COMPARED]]
    sizes = {h: t.nbytes for model in models for h, t in tensors[model.card.name].items()}
    return Group(
        name=models[0].card.name,
        models=models,
        stored=sum(sizes.values()),
        alike=alike,
        shared=tuple(
            tuple(sum(sizes[h] for h in mine.keys() & other.keys()) for other in compared)
            for mine in compared
        ),
    )


def _alike(models: Sequence[ModelFacts]) -> tuple[ModelGroup, ...]:
    found: dict[tuple[tuple[str, bool], ...], list[ModelFacts]] = {}
    for model in models:
        key = tuple((layer.digest, layer.has_delta) for layer in model.layers)
        found.setdefault(key, []).append(model)
    return tuple(ModelGroup(tuple(same)) for same in found.values())
