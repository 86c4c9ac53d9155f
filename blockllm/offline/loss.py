"""What a model loses against another, as the catalogue keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from blake3 import blake3

from blockllm import __version__
from blockllm.core import Measurement
from blockllm.engine.scoring import Scorer, compare


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
    return Measurement(
        model=model,
        reference=reference,
        window=window,
        text=str(blake3(text).hexdigest()),
        created=time.time(),
        versions={"blockllm": __version__, "torch": str(torch.__version__)},
        **compare(scorer, model, reference, windows)._asdict(),
    )
