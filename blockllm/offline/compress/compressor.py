"""A fine-tune beside its base with every codec of its differences at hand: mixes to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from blockllm.core import Measurement, Target, Tensor, target_tensors
from blockllm.engine.score import Comparison, Scorer, compare
from blockllm.engine.weights.loader import PackStore
from blockllm.errors import ZooError
from blockllm.offline.compress.candidates import Candidates, Scratch, Weight, make_candidates, read
from blockllm.offline.compress.choose import Mix, frontier
from blockllm.offline.compress.mixes import Stores, chain_with, targets_of
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import NewTarget, OwnFacts
from blockllm.zoo.assets import ASSET_FILES
from blockllm.zoo.digest import target_settings
from blockllm.zoo.reports import Progress, silent

_REFERENCE = "reference"  # name of the checkpoint in the scratch zoo
_COARSE = "sign"  # codec that shows what an error costs
_LEAST = 1e-9  # KL below which a difference of two measurements says nothing
_ARRAYS = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I32": np.int32}


def _coarse(weight: Weight) -> int:
    return weight.codecs.index(_COARSE) if _COARSE in weight.codecs else 1


class Compressor:
    """A fine-tune beside its base, with every codec of its differences at hand.

    `folder` is for files of about three times the checkpoint's size; it is left as it is.
    """

    def __init__(
        self, zoo: Zoo, source: str | Path, base: str, folder: Path, progress: Progress = silent
    ) -> None:
        """Read and encode. Raises ZooError if the checkpoint is no fine-tune of the base, and what
        `Zoo.add` does."""
        self._zoo, self._scratch = Zoo(folder / "checkpoint"), Scratch(folder / "codes")
        self._base = zoo.chain(base)
        if self._base.parent is not None or zoo.targets(base):
            raise ZooError(f"{base!r} is a delta itself; give a full model as base")
        report = self._zoo.add(_REFERENCE, source, progress=progress)
        self.checkpoint_bytes, self.notes = report.total_bytes, report.notes
        self._stores: list[PackStore] = [zoo, self._zoo, self._scratch]
        layers = zoo.layers(base), self._zoo.layers(_REFERENCE)
        self.candidates: Candidates = make_candidates(
            Stores(self._stores, []), *layers, self._scratch, progress
        )
        self.mixes: list[Mix] = self._mixes({})

    def own_facts(self, loss: Measurement) -> OwnFacts:
        """What the model brings itself: the checkpoint's ends and files, and what was measured."""
        found = {file: self._zoo.asset(_REFERENCE, file) for file in ASSET_FILES}
        files = {file: path for file, path in found.items() if path}
        return OwnFacts(self._zoo.chain(_REFERENCE).eos_ids, files, loss)

    def _mixes(self, factors: dict[str, float]) -> list[Mix]:
        # errors of different kinds of weights count by their factors
        options = [
            [o._replace(error=o.error * factors.get(weight.kind, 1.0)) for o in weight.options]
            for weight in self.candidates.weights
        ]
        fixed = self.candidates.fixed_bytes
        return [mix._replace(nbytes=mix.nbytes + fixed) for mix in frontier(options)]

    def weigh(self, text: list[list[int]]) -> dict[str, float]:
        """Measure how much KL a squared error in each kind of weight (all queries, all embeddings)
        costs, one kind at a time coarsely coded beside all others at their best; `mixes` then
        spend bytes by that. The plain sum of squares would spend most of them on embeddings.
        """
        weights = self.candidates.weights
        best = tuple(w.options.index(min(w.options, key=lambda o: o.error)) for w in weights)
        floor = self.measure(Mix(best, 0, 0.0), text).kl
        factors: dict[str, float] = {}
        for kind in dict.fromkeys(weight.kind for weight in weights):
            picks = tuple(
                _coarse(weight) if weight.kind == kind else last
                for weight, last in zip(weights, best, strict=True)
            )
            mixes = (Mix(picks, 0, 0.0), Mix(best, 0, 0.0))
            coarse, fine = (self._error(mix) for mix in mixes)
            cost = max(self.measure(mixes[0], text).kl - floor, _LEAST)
            factors[kind] = cost / max(coarse - fine, _LEAST)
        self.mixes = self._mixes(factors)
        return factors

    def _error(self, mix: Mix) -> float:
        weights = zip(self.candidates.weights, mix.picks, strict=True)
        return sum(weight.options[pick].error for weight, pick in weights)

    def measure(self, mix: Mix, text: list[list[int]]) -> Comparison:
        """What the mix loses against the checkpoint on windows of tokens."""
        chain = chain_with(self._base, "compressed", targets_of(self.candidates, mix))
        view = Stores(self._stores, [chain, self._zoo.chain(_REFERENCE)])
        scorer = Scorer(view, [chain.model, _REFERENCE])
        return compare(scorer, chain.model, _REFERENCE, text)

    def uniform_mixes(self) -> list[Mix]:
        """One codec for every weight that takes it, smallest first; embeddings take no ranks: what
        stands behind."""
        names = {name for weight in self.candidates.weights for name in weight.codecs[1:]}
        return sorted(map(self.uniform, names), key=lambda mix: mix.nbytes)

    def uniform(self, codec: str) -> Mix:
        """The codec for every weight, or what follows its ranks; dropped where neither fits."""
        weights, picks = self.candidates.weights, []
        for weight in weights:
            fitting = (
                name for name in (codec, codec.removeprefix("rank+")) if name in weight.codecs
            )
            picks.append(weight.codecs.index(next(fitting, weight.codecs[0])))
        nbytes = sum(w.options[pick].nbytes for w, pick in zip(weights, picks, strict=True))
        mix = Mix(tuple(picks), nbytes + self.candidates.fixed_bytes, 0.0)
        return mix._replace(error=self._error(mix))

    def codecs(self, mix: Mix) -> dict[str, str]:
        """Which codec the mix takes, by (position).(module)."""
        return {
            f"{position}.{module}": weight.codecs[pick]
            for weight, pick in zip(self.candidates.weights, mix.picks, strict=True)
            for position, module in weight.places
        }

    def new_targets(self, mix: Mix) -> dict[int, dict[str, tuple[Target | NewTarget, ...]]]:
        """The mix as a zoo takes it."""
        return {
            position: {m: tuple(map(self._load, group)) for m, group in modules.items()}
            for position, modules in targets_of(self.candidates, mix).items()
        }

    def _load(self, target: Target) -> NewTarget:
        settings: dict[str, Any] = msgspec.json.decode(target_settings(target))
        parts: dict[str, Tensor | NDArray[Any]] = {
            name: read(self._scratch, tensor).view(_ARRAYS[tensor.dtype]).reshape(tensor.shape)
            for name, tensor in target_tensors(target).items()
        }
        return NewTarget(settings.pop("kind"), parts, settings)
