"""Raw bytes of a weight [out, in] → the bytes of its int8 format; see int8.py.

Apart, so that numpy is only imported where something is rounded.
"""

from __future__ import annotations

import numpy as np

from blockllm.zoo.arrays import Floats, widen

_LARGEST = 127


def make_scales(data: memoryview, dtype: str, columns: int) -> memoryview:
    """fp32 scales of whole rows. Raises ValueError for values that are not finite."""
    return memoryview(_scales(widen(data, dtype).reshape(-1, columns)).tobytes())


def make_weight(data: memoryview, dtype: str, columns: int) -> memoryview:
    """int8 numbers of whole rows. Raises ValueError for values that are not finite."""
    weight = widen(data, dtype).reshape(-1, columns)
    rounded = np.rint(weight / _scales(weight)[:, None])
    return memoryview(np.clip(rounded, -_LARGEST, _LARGEST).astype(np.int8).tobytes())


def _scales(weight: Floats) -> Floats:
    peak = np.abs(weight).max(axis=1)
    if not np.isfinite(peak).all():
        raise ValueError("has weights that are not finite numbers")
    scale: Floats = peak / np.float32(_LARGEST)
    scale[scale == 0] = 1  # zeros, or numbers too small for a scale to exist
    return scale
