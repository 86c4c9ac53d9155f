"""Small trained vectors around random matrices that all modules share, cut to each one's size.

VeRA      diag(b) B diag(d) A       (arXiv 2310.11454)   vera_A [r, inputs]   vera_B [outputs, r]
PVeRA     VeRA with the mean of what it draws, the first half of d and A
RandLoRA  a sum of such terms up to full rank (arXiv 2502.00987): merged
    randlora_A [r, 1, shorter]   randlora_B [longer, terms, r]
"""

from __future__ import annotations

import math

import numpy as np

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules, take_shared
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Weights, read_floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_SAVING = "save_projection=True"
_OPTIONS = COMMON | {"d_initial", "projection_prng_key", "r", "save_projection"}


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
    rank, rest = reader.integer("r"), dict(tensors)
    a, b = take_shared(rest, f"{kind}_A", _SAVING), take_shared(rest, f"{kind}_B", _SAVING)

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        module.check({"b": (out,), "d": (halves * rank,)})
        _check_cut(a, (halves * rank, inputs), exact=0)
        _check_cut(b, (out, rank), exact=1)
        # unscaled, A is the same tensor for all modules of one size, and stored once
        return module.low_rank(
            rank,
            lambda _: read_floats(a)[:rank, :inputs],
            lambda _: module.read("b")[:, None] * read_floats(b)[:out] * module.read("d")[:rank],
        )

    suffixes = {f".{kind}_lambda_b": "b", f".{kind}_lambda_d": "d"}
    return read_modules(reader, kind, strip_prefix(rest), layers, suffixes, change)


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
        _check_cut(a, (rank, 1, short), exact=0)
        _check_cut(b, (long, terms, rank), exact=2)

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


def _check_cut(source: Source, least: tuple[int, ...], exact: int) -> None:
    """Raise AdapterMismatch unless a shared matrix is large enough; one size must be equal."""
    shape = source.entry.shape
    fits = len(shape) == len(least) and shape[exact] == least[exact]
    if not fits or any(found < size for found, size in zip(shape, least, strict=True)):
        raise AdapterMismatch(f"a shared matrix is {list(shape)}, modules need {list(least)}")
