"""From a model to a draft of it in the zoo: make surrogates, keep them if good enough, measure."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from blake3 import blake3

from blockllm.core import LayerFunction, Measurement
from blockllm.engine.score import Scorer
from blockllm.errors import ZooError
from blockllm.offline.loss import measure_loss
from blockllm.offline.surrogates.decoding import load
from blockllm.offline.surrogates.make import decoders, make_surrogates
from blockllm.offline.surrogates.quality import SurrogateFound, layer_qualities, layer_seconds
from blockllm.offline.surrogates.speculate import Speculation, measure_speculation
from blockllm.offline.training.arrays import new_layers
from blockllm.offline.training.loop import Course
from blockllm.offline.training.texts import learn_and_measure
from blockllm.offline.training.twin import TwinLayer, load_twins
from blockllm.zoo import Progress, Zoo

_PROMPTS, _PROMPT, _ANSWER = 8, 32, 48  # speculation is measured on: prompts, tokens, new tokens


class Wish(NamedTuple):
    """What surrogates to make of a model, and how good the draft must be to be kept."""

    model: str
    name: str  # of the draft
    ratio: float  # of query heads and MLP channels that leave
    text: bytes
    window: int
    course: Course
    gamma: int = 4
    measured: bytes | None = None  # text to measure on; else the last fifth of `text`
    min_agreement: float = 0.0
    checkpoint: Path | None = None


class Made(msgspec.Struct, frozen=True):
    """A draft in the zoo: its surrogates by layer, what it loses, and what it is worth."""

    name: str
    ratio: float
    surrogates: tuple[SurrogateFound, ...]
    loss: Measurement
    speculation: Speculation
    seconds: float


def surrogate(zoo: Zoo, wish: Wish, progress: Progress) -> Made:
    """Make a surrogate of every decoder layer and a draft chain of them; findings and loss are in
    the catalogue when this returns.

    Raises ZooError, and then no model was added: if the text is too short, the model has deltas,
    or the draft's first choices agree with the model's less than asked for.
    """
    started = time.monotonic()
    layers = load_twins(zoo, wish.model)
    learned, kept = learn_and_measure(zoo, [wish.model], wish.text, wish.measured, wish.window)
    shown = f"pruning {wish.ratio:.0%}"
    made = make_surrogates(
        layers, learned, wish.ratio, wish.course, _task(zoo, wish), wish.checkpoint,
        lambda done, steps, loss: progress(f"{shown}, loss {loss:.4f}", done, steps),
    )  # fmt: skip
    zoo.assemble(
        wish.name,
        wish.model,
        new_layers(zoo, wish.model, made),
        kind="draft",
        root=f"{wish.model} without {wish.ratio:.0%} of its heads and channels",
    )
    try:
        progress(f"{shown}: measuring", 0, 0)
        loss = measure_loss(
            Scorer(zoo, [wish.name, wish.model]), wish.name, wish.model, kept.tolist(),
            wish.window, wish.measured or wish.text,
        )  # fmt: skip
        if loss.agreement < wish.min_agreement:
            raise ZooError(
                f"{wish.name}: first choices agree with {wish.model}'s at {loss.agreement:.2%} of "
                f"tokens, asked for are {wish.min_agreement:.2%}; nothing was added"
            )
        speculation = _measure_draft(zoo, wish, kept)
        surrogates = _find(zoo, wish, layers, kept)
    except BaseException:
        zoo.remove(wish.name)
        raise
    zoo.record_loss(loss)
    zoo.record_finding("speculation", wish.name, wish.model, speculation)
    seconds = time.monotonic() - started
    return Made(wish.name, wish.ratio, surrogates, loss, speculation, seconds)


def _task(zoo: Zoo, wish: Wish) -> str:
    digests = [layer.digest for layer in zoo.layers(wish.model)]
    facts = (digests, wish.ratio, wish.window, wish.course, blake3(wish.text).hexdigest())
    return str(blake3(repr(facts).encode()).hexdigest())


def _measure_draft(zoo: Zoo, wish: Wish, kept: torch.Tensor) -> Speculation:
    prompts: Sequence[Sequence[int]] = [
        window[: max(2, min(_PROMPT, len(window) // 2))] for window in kept[:_PROMPTS].tolist()
    ]
    parts = load(zoo, [wish.model, wish.name])
    limit = min(state.max_context for state in parts.states.values())
    count = min(_ANSWER, limit - len(prompts[0]) - wish.gamma - 2)
    return measure_speculation(parts, wish.model, wish.name, prompts, count, wish.gamma)


def _find(
    zoo: Zoo, wish: Wish, layers: Sequence[TwinLayer], kept: torch.Tensor
) -> tuple[SurrogateFound, ...]:
    """Measure the surrogates as they were stored and record a finding of each."""
    stored = load_twins(zoo, wish.name)
    qualities = layer_qualities(layers, stored, kept)
    models = (wish.model, wish.name)
    row, rows = (layer_seconds(zoo, models, count) for count in (1, 32))
    found = []
    for i, (position, quality) in enumerate(zip(decoders(layers), qualities, strict=True)):
        old, new = (zoo.layers(model)[position] for model in models)
        function = new.function
        assert isinstance(function, LayerFunction)
        finding = SurrogateFound(
            model=wish.model,
            ratio=wish.ratio,
            num_heads=function.num_heads,
            intermediate_size=function.intermediate_size,
            parameters_saved=1 - _size(stored[position]) / _size(layers[position]),
            quality=quality,
            row_seconds_saved=1 - row[wish.name][i] / row[wish.model][i],
            rows_seconds_saved=1 - rows[wish.name][i] / rows[wish.model][i],
            text=str(blake3(wish.measured or wish.text).hexdigest()),
        )
        zoo.record_finding("surrogate", new.digest, old.digest, finding)
        found.append(finding)
    return tuple(found)


def _size(layer: TwinLayer) -> int:
    return sum(math.prod(weight.shape) for weight in layer.weights.values())
