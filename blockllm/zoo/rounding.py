"""Raw bytes of a weight [out, in] → the bytes of its int8 format; see int8.py.

Apart, so that numpy is only imported where something is rounded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LARGEST = 127


def make_scales(data: memoryview, dtype: str, columns: int) -> memoryview:
    """fp32 scales of whole rows. Raises ValueError for values that are not finite."""
    return memoryview(_scales(_widen(data, dtype, columns)).tobytes())


def make_weight(data: memoryview, dtype: str, columns: int) -> memoryview:
    """int8 numbers of whole rows. Raises ValueError for values that are not finite."""
    weight = _widen(data, dtype, columns)
    rounded = np.rint(weight / _scales(weight)[:, None])
    return memoryview(np.clip(rounded, -_LARGEST, _LARGEST).astype(np.int8).tobytes())


def _scales(weight: Floats) -> Floats:
    peak = np.abs(weight).max(axis=1)
    if not np.isfinite(peak).all():
        raise ValueError("has weights that are not finite numbers")
    scale: Floats = peak / np.float32(_LARGEST)
    scale[scale == 0] = 1  # zeros, or numbers too small for a scale to exist
    return scale


def _widen(data: memoryview, dtype: str, columns: int) -> Floats:
    wide: Floats
    if dtype == "F32":
        wide = np.frombuffer(data, "<f4")
    elif dtype == "F16":
        wide = np.frombuffer(data, "<f2").astype(np.float32)
    else:  # bf16 is the upper half of fp32
        wide = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return wide.reshape(-1, columns)
