"""Differences given by some coefficients of a transform, at places drawn from a seed.

FourierFT   the real part of an inverse 2-d Fourier transform (arXiv 2405.03003): merged
WaveFT      an inverse 2-d wavelet transform of Haar's wavelet (`db1`, the default), where each
            coefficient touches four elements, or none (arXiv 2505.12532): sparse
"""

from __future__ import annotations

import numpy as np

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.random import permutation
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Integers, Weights
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_OPTIONS = COMMON | {"n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling"}
_HAAR = "db1"


def read_fourierft(
    reader: SettingsReader, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    """PEFT's FOURIERFT; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    seed = reader.integer("random_loc_seed", 777, low=0)
    scale = reader.number("scaling", 150.0)

    def change(module: Module) -> Change:
        count = _count(module)

        def merge(weights: Weights) -> Floats:
            spectrum = np.zeros(module.sizes, np.float32)
            spectrum.flat[permutation(spectrum.size, count, seed)] = module.read("spectrum")
            step: Floats = (np.fft.ifft2(spectrum).real * scale).astype(np.float32)
            return weights[module.weight] + step

        return module.merge(merge)

    suffixes = {".fourierft_spectrum": "spectrum"}
    return read_modules(reader, "fourierft", strip_prefix(tensors), layers, suffixes, change)


def read_waveft(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's WAVEFT with Haar's wavelet or with none; raises a CheckpointError."""
    check_options(reader, _OPTIONS | {"proportional_parameters", "use_idwt", "wavelet_family"})
    seed = reader.integer("random_loc_seed", 777, low=0)
    scale = reader.number("scaling", 25.0)
    spreads, family = reader.boolean("use_idwt", True), reader.text("wavelet_family", _HAAR)
    if spreads and family != _HAAR:
        raise UnsupportedModel(
            f"{reader.where}: wavelet_family {family[:40]!r} is not supported (supported: {_HAAR}, "
            "or any with use_idwt=False); merge the adapter into its base"
        )

    def change(module: Module) -> Change:
        count, size = _count(module), module.sizes[0] * module.sizes[1]

        def elements() -> tuple[Integers, Floats]:
            places, values = permutation(size, count, seed), scale * module.read("spectrum")
            return _spread(places, values, module.sizes) if spreads else (places, values)

        return module.sparse(4 * count if spreads else count, elements)

    suffixes = {".waveft_spectrum": "spectrum"}
    return read_modules(reader, "waveft", strip_prefix(tensors), layers, suffixes, change)


def _count(module: Module) -> int:
    shape = module.parts["spectrum"].entry.shape
    if len(shape) != 1 or shape[0] > module.sizes[0] * module.sizes[1]:
        raise AdapterMismatch(
            f"{module.name[:200]}: expected at most as many coefficients as the weight has "
            f"elements, got {list(shape)}"
        )
    module.check({"spectrum": shape})
    return shape[0]


def _spread(places: Integers, values: Floats, sizes: tuple[int, int]) -> tuple[Integers, Floats]:
    """The elements that Haar coefficients at these places add to: places [4 n] and values. The
    right half of the coefficients is of differences between rows, the lower between columns."""
    rows, columns = np.divmod(places, sizes[1])
    lower, row = np.divmod(rows, -(-sizes[0] // 2))
    right, column = np.divmod(columns, -(-sizes[1] // 2))
    found, parts = [], []
    for down in (0, 1):
        for along in (0, 1):
            # of sizes that are odd the last row or column is cut off
            y, x = 2 * row + down, 2 * column + along
            inside = (y < sizes[0]) & (x < sizes[1])
            sign = np.where(right * down, -1, 1) * np.where(lower * along, -1, 1)
            found.append(np.where(inside, y * sizes[1] + x, 0))
            parts.append(np.where(inside, values * sign / 2, 0))
    return np.concatenate(found), np.concatenate(parts).astype(np.float32)
