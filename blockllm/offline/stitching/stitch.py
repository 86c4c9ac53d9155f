"""From two models to chains of both in the zoo: fit a bridge, train it, measure, keep or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from blake3 import blake3

from blockllm.core import Layer, Measurement
from blockllm.engine.score import Scorer, compare
from blockllm.offline.loss import measure_loss
from blockllm.offline.stitching.bridge import BridgePowers, least_squares, pairs_of, train_bridge
from blockllm.offline.stitching.cuts import Cost, Cut, bridge_function, check_cut, cost
from blockllm.offline.training.arrays import new_layer, storage_dtype
from blockllm.offline.training.loop import TrainingSchedule
from blockllm.offline.training.texts import learn_and_measure
from blockllm.offline.training.twin import TwinLayer, Weights, load_twins
from blockllm.zoo import Progress, Zoo
from blockllm.zoo.assemble import NewLayer

_PAIRED = 32  # windows whose hidden states the first fit sees


class StitchOptions(NamedTuple):
    """Which models to join where, how to train the bridge, and what a chain may lose."""

    front: str
    back: str
    cuts: tuple[Cut, ...]
    name: str  # of the chain; of several, each has the cut behind it
    text: bytes
    window: int
    schedule: TrainingSchedule
    terms: BridgePowers = BridgePowers()
    measured: bytes | None = None  # text to measure on; else the last fifth of `text`
    max_rise: float | None = None  # of the perplexity, against the back model
    checkpoint: Path | None = None


class Stitched(msgspec.Struct, frozen=True):
    """One chain: a finding about its bridge (subject) and its name (object)."""

    name: str
    front: str
    back: str
    cut: Cut
    loss: Measurement  # against the back model
    front_perplexity: float
    cost: Cost
    front_cost: Cost
    back_cost: Cost
    kept: bool  # whether the loss is within the gate; the zoo has no other


def stitch(zoo: Zoo, options: StitchOptions, progress: Progress) -> list[Stitched]:
    """Join the models by one bridge for all cuts. Chains within the gate are in the zoo when this
    returns, with their loss.

    Raises ZooError, and then no model was added, for cuts that make no chain, models with deltas
    or of different tokenizers, and too little text.
    """
    front, back = (zoo.layers(model) for model in (options.front, options.back))
    for cut in options.cuts:
        check_cut(front, back, cut)
    models = (options.front, options.back)
    learned, kept = learn_and_measure(zoo, models, options.text, options.measured, options.window)
    weights = _make_bridge(zoo, options, learned, progress)
    added: list[str] = []
    try:
        for cut in options.cuts:
            added.append(_assemble(zoo, options, cut, weights))
        progress("measuring", 0, 0)
        found = _measure(zoo, options, added, kept)
    except BaseException:
        for name in added:
            zoo.remove(name)
        raise
    for one in found:
        if one.kept:
            zoo.record_loss(one.loss)
            bridge = zoo.layers(one.name)[one.cut.front + 1]
            zoo.record_finding("stitch", bridge.digest, one.name, one)
        else:
            zoo.remove(one.name)
    return found


def _make_bridge(
    zoo: Zoo, options: StitchOptions, learned: torch.Tensor, progress: Progress
) -> Weights:
    front, back = (zoo.layers(model) for model in (options.front, options.back))
    ours, theirs = (load_twins(zoo, model) for model in (options.front, options.back))
    bridges = {cut: bridge_function(front, back, cut) for cut in options.cuts}
    progress("fitting by least squares", 0, 0)
    weights = least_squares(pairs_of(ours, theirs, bridges, learned[:_PAIRED]), options.terms)
    return train_bridge(
        ours, theirs, bridges, weights, learned, options.schedule, _task(options, front, back),
        options.checkpoint,
        lambda done, steps, loss: progress(f"distilling, loss {loss:.4f}", done, steps),
    )  # fmt: skip


def _task(options: StitchOptions, front: Sequence[Layer], back: Sequence[Layer]) -> str:
    digests = [layer.digest for layer in (*front, *back)]
    text = blake3(options.text).hexdigest()
    facts = (digests, options.cuts, options.window, options.schedule, options.terms, text)
    return str(blake3(repr(facts).encode()).hexdigest())


def chain_name(options: StitchOptions, cut: Cut) -> str:
    """The name that the chain of a cut gets."""
    return options.name if len(options.cuts) == 1 else f"{options.name}-{cut.front}-{cut.back}"


def _assemble(zoo: Zoo, options: StitchOptions, cut: Cut, weights: Weights) -> str:
    front, back = (zoo.layers(model) for model in (options.front, options.back))
    bridge = TwinLayer(bridge_function(front, back, cut), weights)
    layers: tuple[Layer | NewLayer, ...] = (
        *front[: cut.front + 1],
        new_layer(bridge, storage_dtype(zoo, options.back)),
        *back[cut.back + 1 :],
    )
    shorter = min((options.front, options.back), key=lambda name: zoo.card(name).max_context)
    name = chain_name(options, cut)
    root = f"{options.front}@{cut.front} {options.back}@{cut.back}"
    zoo.assemble(name, shorter, layers, kind="stitched", root=root)
    return name


def _measure(
    zoo: Zoo, options: StitchOptions, names: Sequence[str], kept: torch.Tensor
) -> list[Stitched]:
    scorer = Scorer(zoo, [*names, options.front, options.back])
    windows, text = kept.tolist(), options.measured or options.text
    front_perplexity = compare(scorer, options.front, options.back, windows).perplexity
    front_cost, back_cost = (cost(zoo.layers(model)) for model in (options.front, options.back))
    found = []
    for name, cut in zip(names, options.cuts, strict=True):
        loss = measure_loss(scorer, name, options.back, windows, options.window, text)
        within = options.max_rise is None or loss.rise <= options.max_rise
        own = cost(zoo.layers(name))
        found.append(
            Stitched(name, options.front, options.back, cut, loss, front_perplexity, own,
                     front_cost, back_cost, within)
        )  # fmt: skip
    return found
