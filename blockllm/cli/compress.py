"""`blockllm zoo add --share delta`: a full fine-tune kept as a small lossy delta on its base."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from blockllm.cli.measure import parse_share
from blockllm.cli.output import size_text
from blockllm.config import parse_bytes
from blockllm.errors import ConfigError, ZooError

if TYPE_CHECKING:
    from blockllm.offline.compress.compress import Compressed
    from blockllm.zoo import Zoo
    from blockllm.zoo.reports import Progress

Share = Annotated[
    Literal["delta"] | None,
    typer.Option(help="Keep a full fine-tune of --base as its blocks and a small lossy delta."),
]
MaxKl = Annotated[
    float | None,
    typer.Option(min=0, help="KL (nats) that a delta may cost; 0.01 if no limit is given."),
]
MaxBytes = Annotated[
    str | None, typer.Option(help="Size that a delta may have: 20% of the checkpoint, or 3MiB.")
]
DeltaText = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Text (UTF-8) to measure a delta's loss on."),
]

DEFAULT_KL = 0.01


class Limits(NamedTuple):
    """The options of `--share delta` as they were given."""

    max_kl: float | None
    max_bytes: str | None
    text: Path | None

    def check(self, share: str | None, base: str | None, others: bool) -> None:
        """Raise ZooError if options are missing or do not go together."""
        if share is None:
            if any(value is not None for value in self):
                raise ZooError("--max-kl, --max-bytes and --text go with --share delta")
        elif base is None or self.text is None:
            raise ZooError("--share delta needs --base and --text")
        elif others:
            raise ZooError("--share delta takes neither --format nor --scale")


def add_delta(
    zoo: Zoo, name: str, source: str, base: str, limits: Limits, scratch: Path, progress: Progress
) -> Compressed:
    """Add the fine-tune; raises ZooError with the measured loss where that is too much."""
    from blockllm.offline.compress.compress import CompressOptions, compress

    assert limits.text is not None
    max_bytes = None if limits.max_bytes is None else _parse_size(limits.max_bytes)
    max_kl = limits.max_kl
    if max_kl is None and max_bytes is None:
        max_kl = DEFAULT_KL
    options = CompressOptions(max_kl, max_bytes)
    return compress(zoo, name, source, base, limits.text.read_bytes(), options, scratch, progress)


def delta_lines(name: str, made: Compressed) -> list[str]:
    """What was added and what it loses, for people."""
    share, loss = made.nbytes / made.checkpoint_bytes, made.measurement
    codecs = Counter(made.codecs.values()).most_common()
    return [
        f"added {name}: {size_text(made.nbytes)}, {share:.1%} of the checkpoint's "
        f"{size_text(made.checkpoint_bytes)}, {made.report.seconds:.1f} s",
        f"perplexity {loss.perplexity:.3f}, checkpoint's {loss.reference_perplexity:.3f} "
        f"({loss.rise:+.2%}), KL {loss.kl:.5f}, same first choice {loss.agreement:.2%} on "
        f"{loss.num_tokens} tokens",
        "weights: " + ", ".join(f"{count} {codec}" for codec, count in codecs),
        *(f"  {note}" for note in made.report.notes),
    ]


def _parse_size(text: str) -> float:
    try:
        return parse_share(text) if text.endswith("%") else parse_bytes(text)
    except (ConfigError, ZooError):
        raise ZooError(f"--max-bytes: expected 20% or 3MiB, got {text!r}") from None
