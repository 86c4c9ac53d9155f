"""The measurements that decide: chains with layers exchanged, run to the end on text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from blockllm.core import Layer
from blockllm.engine.score import Scorer, compare
from blockllm.offline.equivalence.candidates import Models, by_digest, exchanged
from blockllm.offline.equivalence.evidence import Mapping, Quality
from blockllm.offline.equivalence.variants import Variants, chain_of
from blockllm.zoo import Zoo
from blockllm.zoo.reports import Progress, silent

_GROUP = 32  # chains scored by one loaded set of weights
Text = Sequence[Sequence[int]]  # windows of tokens


class Oracle:
    """Measures models with layers exchanged, each on its own text against itself unchanged.

    Remembers every chain it measured. Weights loaded at a time are those of the layers of one
    model and of what is put into it.
    """

    def __init__(
        self, zoo: Zoo, models: Models, texts: dict[str, Text], progress: Progress = silent
    ) -> None:
        self._zoo = zoo
        self._models = models
        self._known = by_digest(models)
        self._likes = zoo.chains(models)
        self._texts = texts
        self._progress = progress
        self._found: dict[tuple[str, tuple[str, ...]], Quality] = {}

    def __call__(self, mapping: Mapping) -> dict[str, Quality]:
        """Quality of every model that the swaps change. Raises what `Scorer` and `compare` do."""
        self.measure([mapping])
        return {model: self._found[_key(model, x)] for model, x in self._changed(mapping)}

    def measure(self, mappings: Sequence[Mapping]) -> None:
        """Measure many sets of swaps, each alone, with weights loaded once for a group of them."""
        wanted: dict[str, dict[tuple[str, ...], list[Layer]]] = {}
        for mapping in mappings:
            for model, layers in self._changed(mapping):
                key = _key(model, layers)
                if key not in self._found:
                    wanted.setdefault(model, {})[key[1]] = layers
        for model, variants in wanted.items():
            self._measure_model(model, list(variants.values()))

    def _changed(self, mapping: Mapping) -> list[tuple[str, list[Layer]]]:
        return [
            (model, exchanged(layers, mapping, self._known))
            for model, layers in self._models.items()
            if any(layer.digest in mapping for layer in layers)
        ]

    def _measure_model(self, model: str, variants: Sequence[list[Layer]]) -> None:
        rest = iter(variants)
        done = 0
        like = self._likes[model]
        while group := list(islice(rest, _GROUP)):
            changed = [chain_of(f"{model} {i}", x, like) for i, x in enumerate(group)]
            chains = [chain_of(model, self._models[model], like), *changed]
            scorer = Scorer(Variants(self._zoo, chains), [chain.model for chain in chains])
            for chain, layers in zip(changed, group, strict=True):
                found = compare(scorer, chain.model, model, self._texts[model])
                self._found[_key(model, layers)] = Quality(**found._asdict())
                done += 1
                self._progress(f"layers put into {model}", done, len(variants))


def _key(model: str, layers: Sequence[Layer]) -> tuple[str, tuple[str, ...]]:
    return model, tuple(layer.digest for layer in layers)
