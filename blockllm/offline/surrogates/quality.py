"""What surrogates lose and save: by layer, on text that they were not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import torch
import torch.nn.functional as F

from blockllm.config import EngineSettings
from blockllm.core import LayerFunction
from blockllm.engine.build import Parts, build
from blockllm.offline.hops import Group, HopDriver, PoolLimits, TimedHop
from blockllm.offline.surrogates.make import decoders
from blockllm.offline.training.texts import batches
from blockllm.offline.training.twin import TwinLayer, divergence, hidden_states, run_layers
from blockllm.zoo import Zoo

_CONTEXT = 64  # tokens of the sequences that times are taken with
_ROUNDS = 15


class LayerQuality(msgspec.Struct, frozen=True):
    """A surrogate in its layer's place: outputs on the layer's inputs, and the whole model's next
    tokens with this one layer exchanged."""

    cosine: float  # mean over tokens, of the outputs (the residual stream included)
    cosine_of_change: float  # of output minus input: what the layer itself adds
    agreement: float  # share of tokens with the same most likely next token
    kl: float  # nats


class SurrogateFound(msgspec.Struct, frozen=True):
    """A finding about a surrogate (subject) and its layer (object)."""

    model: str
    ratio: float  # asked for
    num_heads: int
    intermediate_size: int
    parameters_saved: float  # share
    quality: LayerQuality
    row_seconds_saved: float  # share of the time of a hop of one row
    rows_seconds_saved: float  # share of the time of a hop of 32 rows of one sequence
    text: str  # BLAKE3 of its bytes


@torch.no_grad()
def layer_qualities(
    layers: Sequence[TwinLayer],
    surrogates: Sequence[TwinLayer],
    windows: torch.Tensor,  # [windows, tokens]
) -> list[LayerQuality]:
    """Quality of every decoder layer's surrogate, in order."""
    sums = torch.zeros(len(decoders(layers)), 4, dtype=torch.float64)
    for ids in batches(windows):
        outputs = hidden_states(layers, ids)
        choices = outputs[-1].argmax(-1)
        for row, i in enumerate(decoders(layers)):
            before, wanted = outputs[i - 1], outputs[i]
            found = surrogates[i](before)
            logits = run_layers(layers[i + 1 :], found)
            values = (
                F.cosine_similarity(found, wanted, dim=-1).mean(),
                F.cosine_similarity(found - before, wanted - before, dim=-1).mean(),
                (logits.argmax(-1) == choices).float().mean(),
                divergence(logits, outputs[-1]),
            )
            sums[row] += torch.stack(values).double() * len(ids)
    return [LayerQuality(*values) for values in (sums / len(windows)).tolist()]


def layer_seconds(zoo: Zoo, models: Sequence[str], rows: int) -> dict[str, list[float]]:
    """Median time of a hop of `rows` rows of one sequence through each decoder layer, in order,
    by model; the models take turns."""
    parts = build(zoo, models, EngineSettings(prefix_cache=False, max_sequences=2, cut="layers"))
    driver = HopDriver(parts, PoolLimits(1, _CONTEXT, rows))
    taken: dict[str, list[list[float]]] = {model: [] for model in models}
    try:
        load = (Group(1, rows, driver.limits(models[0]).context),)
        grants = {model: driver.make(model, load) for model in models}
        for _ in range(_ROUNDS):
            for model, own in grants.items():
                taken[model].append(_by_layer(parts, driver.run(own)))
    finally:
        driver.close()
    # the first round fills caches
    return {model: torch.tensor(t[1:]).median(0).values.tolist() for model, t in taken.items()}


def _by_layer(parts: Parts, hops: Iterable[TimedHop]) -> list[float]:
    seconds: list[float] = []
    for hop in hops:
        function = parts.plan.spans[hop.span].blocks[0].layers[0].function
        if isinstance(function, LayerFunction):
            if function.part == "mlp":  # the layer's attention went before
                seconds[-1] += hop.seconds
            else:
                seconds.append(hop.seconds)
    return seconds
