"""What a model loses against another, as the catalogue keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from blake3 import blake3

from blockllm import __version__
from blockllm.core import Measurement
from blockllm.engine.score import Comparison, Scorer, compare


def measure_loss(
    scorer: Scorer,
    model: str,
    reference: str,
    windows: Iterable[Sequence[int]],
    window: int,
    text: bytes,
) -> Measurement:
    """Compare two loaded models on windows of a text, each up to `window` tokens. Nothing is
    recorded yet. Raises what `compare` raises.
    """
    found = compare(scorer, model, reference, windows)
    return as_measurement(found, model, reference, window, text)


def as_measurement(
    found: Comparison, model: str, reference: str, window: int, text: bytes
) -> Measurement:
    """What was found on windows of a text, with what it holds for."""
    return Measurement(
        model=model,
        reference=reference,
        window=window,
        text=str(blake3(text).hexdigest()),
        created=time.time(),
        versions={"blockllm": __version__, "torch": str(torch.__version__)},
        **found._asdict(),
    )
