"""From a full fine-tune's files to a small delta on its base: encode, choose, measure, add.

The checkpoint goes into a scratch zoo beside the zoo, to be compared with; so do all codecs of all
its weights. The zoo itself is written once, at the end, after the gate has passed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from blockllm.core import Measurement
from blockllm.engine.score import Comparison
from blockllm.errors import NameTaken, ZooError
from blockllm.offline.compress.choose import Mix, smallest
from blockllm.offline.compress.compressor import Compressor
from blockllm.offline.loss import as_measurement
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from blockllm.zoo.reports import AddReport, Progress, silent
from blockllm.zoo.source import check_name

_PROBE = 2  # windows that errors are weighed on


class CompressOptions(msgspec.Struct, frozen=True):
    """What is allowed: the smallest delta within `max_kl`; without that the best within
    `max_bytes`. Up to 1 it is a share of the checkpoint's bytes."""

    max_kl: float | None = None
    max_bytes: float | None = None
    window: int = 512  # tokens scored at a time, each window alone
    num_tokens: int = 4096  # at most, of the text


class Tried(NamedTuple):
    """One mix and what it loses."""

    mix: Mix
    loss: Comparison


class Point(msgspec.Struct, frozen=True):
    """What some bytes lost."""

    nbytes: int
    kl: float
    rise: float  # of the perplexity


class Compressed(msgspec.Struct, frozen=True):
    """What was added, what it loses, which codec each weight got, and all that was measured."""

    report: AddReport
    measurement: Measurement
    nbytes: int
    checkpoint_bytes: int
    codecs: dict[str, str]  # by (position).(module)
    tried: tuple[Point, ...]


def compress(
    zoo: Zoo,
    name: str,
    source: str | Path,
    base: str,
    text: bytes,
    options: CompressOptions,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Compressed:
    """Add a full fine-tune as a compressed delta on `base`; its loss is in the catalogue after.

    `scratch` is a folder with room for some copies of the checkpoint. Raises a ZooError, with the
    measured loss where that is too much, and then the zoo is as it was.
    """
    started = time.monotonic()
    check_name(name)
    if any(card.name == name for card in zoo.cards()):
        raise NameTaken(f"the zoo has a model named {name!r} already; remove it or choose a name")
    parts = windows(zoo, [base], text, options.window)
    parts = parts[: max(1, options.num_tokens // options.window)]
    with _scratch_folder(scratch) as folder:
        made = Compressor(zoo, source, base, Path(folder), progress)
        progress("weighing errors", 0, 0)
        made.weigh(parts[:_PROBE])
        mix, tried = _choose(made, parts, options, progress)
        loss = next(one.loss for one in tried if one.mix == mix)
        measurement = as_measurement(loss, name, str(source), options.window, text)
        report = zoo.assemble(
            name,
            base,
            zoo.layers(base),
            kind="compressed",
            root=str(source),
            targets=made.new_targets(mix),
            parent=base,
            own=made.own_facts(measurement),
        )
    seconds = time.monotonic() - started
    report = msgspec.structs.replace(report, seconds=seconds, notes=made.notes)
    points = tuple(_point(one) for one in tried)
    codecs = made.codecs(mix)
    return Compressed(report, measurement, mix.nbytes, made.checkpoint_bytes, codecs, points)


def _point(tried: Tried) -> Point:
    loss = tried.loss
    return Point(tried.mix.nbytes, loss.kl, loss.perplexity / loss.reference_perplexity - 1)


def _scratch_folder(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=".compress-", dir=parent)
    except OSError as error:
        raise ZooError(f"no place for scratch files: {error}") from error


def _choose(
    made: Compressor, text: list[list[int]], options: CompressOptions, progress: Progress
) -> tuple[Mix, list[Tried]]:
    limit = options.max_bytes
    if limit is not None and limit <= 1:
        limit *= made.checkpoint_bytes
    mixes, uniform = (
        [mix for mix in some if limit is None or mix.nbytes <= limit]
        for some in (made.mixes, made.uniform_mixes())
    )
    if not mixes:
        least = made.mixes[0].nbytes
        raise ZooError(f"norms and biases alone take {least} bytes, allowed are {limit:.0f}")
    tried: list[Tried] = []

    def loss_of(mix: Mix) -> float:
        progress("measuring", len(tried), 0)
        tried.append(Tried(mix, made.measure(mix, text)))
        return tried[-1].loss.kl

    def passes(mix: Mix) -> bool:
        return loss_of(mix) <= (options.max_kl or 0.0)

    # errors do not quite add up: one codec for all weights can be better than the mix of many
    if options.max_kl is None:
        rival = sorted(uniform, key=lambda mix: mix.error)[:1]
        return min((mixes[-1], *rival), key=loss_of), tried
    found = smallest(mixes, passes)
    rivals = (mix for mix in uniform if found is None or mix.nbytes < found.nbytes)
    found = next(filter(passes, rivals), found)
    if found is None:
        best = min(tried, key=lambda one: one.loss.kl)
        size = f"{best.mix.nbytes} bytes ({best.mix.nbytes / made.checkpoint_bytes:.1%})"
        raise ZooError(
            f"KL {best.loss.kl:.5f} at best, allowed is {options.max_kl}: {size} lose that much"
        )
    return found, tried
