"""`blockllm zoo measure`: what a lossy model loses, kept in the catalogue beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.errors import ZooError

if TYPE_CHECKING:
    from blockllm.core import Measurement
    from blockllm.zoo import Zoo

Against = Annotated[
    str, typer.Option("--against", metavar="MODEL", help="The reference: what nothing is lost to.")
]
Text = Annotated[
    Path,
    typer.Option(exists=True, dir_okay=False, help="Text (UTF-8) that the model was made for."),
]
Window = Annotated[int, typer.Option(min=2, help="Tokens scored at a time, each window alone.")]
MaxRise = Annotated[
    str | None,
    typer.Option(help="Exit status 1 if the perplexity rises by more, as 1% or 0.01."),
]


def take_measurement(zoo: Zoo, model: str, reference: str, text: bytes, window: int) -> Measurement:
    """Score the text under both models; the result is in the catalogue when this returns.

    Raises ZooError if the two cannot be compared, and what `Scorer` raises.
    """
    from blockllm.engine.score import Scorer
    from blockllm.offline import text as texts
    from blockllm.offline.loss import measure_loss

    pieces = texts.windows(zoo, [model, reference], text, window)
    scorer = Scorer(zoo, [model, reference])
    measurement = measure_loss(scorer, model, reference, pieces, window, text)
    zoo.record_loss(measurement)
    return measurement


def parse_share(text: str) -> float:
    """`1%` or `0.01` as a number; raises ZooError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ZooError(f"--max-rise: expected 1% or 0.01, got {text!r}") from None
    return share


def loss_lines(measurements: tuple[Measurement, ...]) -> list[str]:
    """One line of text for each measurement."""
    return [
        f"against {m.reference}: perplexity {m.perplexity:.3f}, reference "
        f"{m.reference_perplexity:.3f} ({m.rise:+.2%}), KL {m.kl:.5f}, same first choice "
        f"{m.agreement:.2%}; {m.num_tokens} tokens of text {m.text[:12]}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime(m.created))}"
        for m in measurements
    ]
