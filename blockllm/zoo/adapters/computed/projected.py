"""Small trained vectors around random matrices that all modules share, cut to each one's size.

VeRA      diag(b) B diag(d) A       (arXiv 2310.11454)   vera_A [r, inputs]   vera_B [outputs, r]
PVeRA     VeRA with the mean of what it draws, the first half of d and A
    both: drawn again from their seed where they were not saved
RandLoRA  a sum of such terms up to full rank (arXiv 2502.00987): merged
    randlora_A [r, 1, shorter]   randlora_B [longer, terms, r]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.random import kaiming, seeded
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules, take_shared
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, LinearPlace, find_linear, strip_prefix
from blockllm.zoo.arrays import Floats, Weights, read_floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_SAVING = "save_projection=True"
_MOST_DRAWN = 1 << 28  # numbers, far above any useful rank
_OPTIONS = COMMON | {"d_initial", "projection_prng_key", "r", "save_projection"}


class _Shared(NamedTuple):
    """A matrix that all modules share: its shape, and how it is had."""

    shape: tuple[int, ...]
    read: Callable[[], Floats]


def read_vera(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's VERA; raises a CheckpointError."""
    check_options(reader, {*_OPTIONS, "vera_dropout"})
    return _read_projected(reader, "vera", 1, tensors, layers)


def read_pvera(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's PVERA where it does not draw at inference; raises a CheckpointError."""
    if reader.boolean("sample_at_inference", False):
        raise UnsupportedModel(
            f"{reader.where}: sample_at_inference draws anew for every token, which is not "
            "supported; without it the mean is served"
        )
    check_options(reader, {*_OPTIONS, "generator_seed", "pvera_dropout"})
    return _read_projected(reader, "pvera", 2, tensors, layers)


def _read_projected(
    reader: SettingsReader, kind: str, halves: int, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    rank, rest = reader.integer("r", high=MAX_RANK), dict(tensors)
    if f"base_model.{kind}_A" in rest:
        a, b = (_saved(take_shared(rest, f"{kind}_{side}", _SAVING)) for side in "AB")
    else:
        names = [name for name in strip_prefix(rest) if name.endswith("_lambda_b")]
        places = [find_linear(name.rpartition(".")[0], layers) for name in names]
        a, b = _draw(reader, halves * rank, rank, places)

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        module.check({"b": (out,), "d": (halves * rank,)})
        _check_cut(a.shape, (halves * rank, inputs), exact=0)
        _check_cut(b.shape, (out, rank), exact=1)
        # unscaled, A is the same tensor for all modules of one size, and stored once
        return module.low_rank(
            rank,
            lambda _: a.read()[:rank, :inputs],
            lambda _: module.read("b")[:, None] * b.read()[:out] * module.read("d")[:rank],
        )

    suffixes = {f".{kind}_lambda_b": "b", f".{kind}_lambda_d": "d"}
    return read_modules(reader, kind, strip_prefix(rest), layers, suffixes, change)


def _saved(source: Source) -> _Shared:
    return _Shared(source.entry.shape, lambda: read_floats(source))


def _draw(
    reader: SettingsReader, ranks: int, rank: int, places: Sequence[LinearPlace]
) -> tuple[_Shared, _Shared]:
    """The matrices as PEFT draws them from a seed for the largest sizes among the linears."""
    inputs = max((place.columns for place in places), default=0)
    outputs = max((place.rows for place in places), default=0)
    if ranks * (inputs + outputs) > _MOST_DRAWN:
        raise UnsupportedModel(
            f"{reader.where}: {ranks} ranks are too many to be drawn again; save the adapter again "
            f"with {_SAVING}"
        )
    seed = reader.integer("projection_prng_key", 0, low=0)

    @functools.cache
    def both() -> tuple[Floats, Floats]:
        twister = seeded(seed)
        return kaiming(twister, (ranks, inputs)), kaiming(twister, (outputs, rank))

    return (
        _Shared((ranks, inputs), lambda: both()[0]),
        _Shared((outputs, rank), lambda: both()[1]),
    )


def read_randlora(
    reader: SettingsReader, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    """PEFT's RANDLORA; raises a CheckpointError."""
    options = {"randlora_alpha", "randlora_dropout", "sparse", "very_sparse"}
    check_options(reader, _OPTIONS | options)
    rank, rest = reader.integer("r"), dict(tensors)
    scale = reader.number("randlora_alpha") / rank
    a = take_shared(rest, "randlora_A", _SAVING)
    b = take_shared(rest, "randlora_B", _SAVING)
    # the shared matrices are saved again under each module's name
    rest = {n: s for n, s in rest.items() if not n.endswith((".randlora_A", ".randlora_B"))}

    def change(module: Module) -> Change:
        short, long = sorted(module.sizes)
        terms = math.ceil(short / rank)
        module.check({"lambda": (rank, terms), "gamma": (terms, short)})
        _check_cut(a.entry.shape, (rank, 1, short), exact=0)
        _check_cut(b.entry.shape, (long, terms, rank), exact=2)

        def merge(weights: Weights) -> Floats:
            scaled = (
                module.read("lambda")[:, :, None]
                * read_floats(a)[:, :, :short]
                * module.read("gamma")
            )
            wide = read_floats(b)[:long, :terms].reshape(long, -1)
            step: Floats = wide @ scaled.reshape(-1, short)  # [longer, shorter]
            fits = module.sizes == (long, short)
            return weights[module.weight] + np.float32(scale) * (step if fits else step.T)

        return module.merge(merge)

    suffixes = {".randlora_lambda": "lambda", ".randlora_gamma": "gamma"}
    return read_modules(reader, "randlora", strip_prefix(rest), layers, suffixes, change)


def _check_cut(shape: tuple[int, ...], least: tuple[int, ...], exact: int) -> None:
    """Raise AdapterMismatch unless a shared matrix is large enough; one size must be equal."""
    fits = len(shape) == len(least) and shape[exact] == least[exact]
    if not fits or any(found < size for found, size in zip(shape, least, strict=True)):
        raise AdapterMismatch(f"a shared matrix is {list(shape)}, modules need {list(least)}")
