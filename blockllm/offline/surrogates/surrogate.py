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
from blockllm.offline.training.loop import TrainingSchedule
from blockllm.offline.training.texts import learn_and_measure
from blockllm.offline.training.twin import TwinLayer, load_twins
from blockllm.zoo import Progress, Zoo

_PROMPTS, _PROMPT, _ANSWER = 8, 32, 48  # speculation is measured on: prompts, tokens, new tokens


class SurrogateOptions(NamedTuple):
    """What surrogates to make of a model, and how good the draft must be to be kept."""

    model: str
    name: str  # of the draft
    ratio: float  # of query heads and MLP channels that leave
    text: bytes
    window: int
    schedule: TrainingSchedule
    gamma: int = 4
    measured: bytes | None = None  # text to measure on; else the last fifth of `text`
    min_agreement: float = 0.0
    checkpoint: Path | None = None


class SurrogateDraft(msgspec.Struct, frozen=True):
    """A draft in the zoo: its surrogates by layer, what it loses, and what it is worth."""

    name: str
    ratio: float
    surrogates: tuple[SurrogateFound, ...]
    loss: Measurement
    speculation: Speculation
    seconds: float


def surrogate(zoo: Zoo, options: SurrogateOptions, progress: Progress) -> SurrogateDraft:
    """Make a surrogate of every decoder layer and a draft chain of them; findings and loss are in
    the catalogue when this returns.

    Raises ZooError, and then no model was added: if the text is too short, the model has deltas,
    or the draft's first choices agree with the model's less than asked for.
    """
    started = time.monotonic()
    layers = load_twins(zoo, options.model)
    learned, kept = learn_and_measure(
        zoo, [options.model], options.text, options.measured, options.window
    )
    shown = f"pruning {options.ratio:.0%}"
    made = make_surrogates(
        layers, learned, options.ratio, options.schedule, _task(zoo, options), options.checkpoint,
        lambda done, steps, loss: progress(f"{shown}, loss {loss:.4f}", done, steps),
    )  # fmt: skip
    zoo.assemble(
        options.name,
        options.model,
        new_layers(zoo, options.model, made),
        kind="draft",
        root=f"{options.model} without {options.ratio:.0%} of its heads and channels",
    )
    try:
        progress(f"{shown}: measuring", 0, 0)
        loss = measure_loss(
            Scorer(zoo, [options.name, options.model]), options.name, options.model, kept.tolist(),
            options.window, options.measured or options.text,
        )  # fmt: skip
        if loss.agreement < options.min_agreement:
            raise ZooError(
                f"{options.name}: first choices agree with {options.model}'s at "
                f"{loss.agreement:.2%} of tokens, asked for are {options.min_agreement:.2%}; "
                "nothing was added"
            )
        speculation = _measure_draft(zoo, options, kept)
        surrogates = _find(zoo, options, layers, kept)
    except BaseException:
        zoo.remove(options.name)
        raise
    zoo.record_loss(loss)
    zoo.record_finding("speculation", options.name, options.model, speculation)
    seconds = time.monotonic() - started
    return SurrogateDraft(options.name, options.ratio, surrogates, loss, speculation, seconds)


def _task(zoo: Zoo, options: SurrogateOptions) -> str:
    digests = [layer.digest for layer in zoo.layers(options.model)]
    facts = (
        digests,
        options.ratio,
        options.window,
        options.schedule,
        blake3(options.text).hexdigest(),
    )
    return str(blake3(repr(facts).encode()).hexdigest())


def _measure_draft(zoo: Zoo, options: SurrogateOptions, kept: torch.Tensor) -> Speculation:
    prompts: Sequence[Sequence[int]] = [
        window[: max(2, min(_PROMPT, len(window) // 2))] for window in kept[:_PROMPTS].tolist()
    ]
    parts = load(zoo, [options.model, options.name])
    limit = min(state.max_context for state in parts.states.values())
    count = min(_ANSWER, limit - len(prompts[0]) - options.gamma - 2)
    return measure_speculation(parts, options.model, options.name, prompts, count, options.gamma)


def _find(
    zoo: Zoo, options: SurrogateOptions, layers: Sequence[TwinLayer], kept: torch.Tensor
) -> tuple[SurrogateFound, ...]:
    """Measure the surrogates as they were stored and record a finding of each."""
    stored = load_twins(zoo, options.name)
    qualities = layer_qualities(layers, stored, kept)
    models = (options.model, options.name)
    row, rows = (layer_seconds(zoo, models, count) for count in (1, 32))
    found = []
    for i, (position, quality) in enumerate(zip(decoders(layers), qualities, strict=True)):
        old, new = (zoo.layers(model)[position] for model in models)
        function = new.function
        assert isinstance(function, LayerFunction)
        finding = SurrogateFound(
            model=options.model,
            ratio=options.ratio,
            num_heads=function.num_heads,
            intermediate_size=function.intermediate_size,
            parameters_saved=1 - _size(stored[position]) / _size(layers[position]),
            quality=quality,
            row_seconds_saved=1 - row[options.name][i] / row[options.model][i],
            rows_seconds_saved=1 - rows[options.name][i] / rows[options.model][i],
            text=str(blake3(options.measured or options.text).hexdigest()),
        )
        zoo.record_finding("surrogate", new.digest, old.digest, finding)
        found.append(finding)
    return tuple(found)


def _size(layer: TwinLayer) -> int:
    return sum(math.prod(weight.shape) for weight in layer.weights.values())
