"""The section of measured costs: time by rows of every shape of spans, and load times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from blockllm.engine.costs.profiles import Device, Sample, SpanProfile
from blockllm.engine.costs.span import HopSize
from blockllm.offline.report.facts import Facts
from blockllm.offline.report.markup import Child, Markup, tag
from blockllm.offline.report.plots import BarPiece, Curve, bar, curves
from blockllm.offline.report.sections import bars, folded, key, named, section, table
from blockllm.offline.report.units import counted, share_text, size_text, time_text

_TIERS = (("disk", "pale"), ("page cache", "shared"), ("ready", "own"))

_PANELS = 6  # shapes of spans that are seen without a click


def costs(facts: Facts) -> Markup:
    """All profiles, one group of panels for each device."""
    if not facts.profiles:
        command = tag("code", "blockllm zoo profile")
        return section("What a hop costs", ["Nothing was measured yet: run ", command, "."])
    devices = list(dict.fromkeys(_device_text(profile.device) for profile, _ in facts.profiles))
    groups: list[Child] = []
    for device in devices:
        mine = [(p, models) for p, models in facts.profiles if _device_text(p.device) == device]
        groups.append(tag("p", tag("strong", device)))
        groups.append(folded(mine, _PANELS, "shape", _panels))
        groups.append(_load_times([profile for profile, _ in mine]))
    caption = (
        "Time of one hop by its rows, per shape of span: spans with equal functions, formats and "
        "sizes cost the same. Dots are medians of measured hops, lines the fitted model; both axes "
        "are logarithmic. The error is that of hops which the fit has not seen."
    )
    names = (("a", "decoding, short contexts"), ("b", "decoding, long contexts"),
             ("c", "one chunk of a prompt"))  # fmt: skip
    return section("What a hop costs", caption, key(names), *groups, _numbers(facts))


def _device_text(device: Device) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in device.versions.items())
    kernels = "" if device.kernels == "auto" else f", {device.kernels} kernels"
    threads = counted(device.threads, "thread")
    return f"{device.name}, {threads}, {device.dtype}{kernels}; {versions}"


def _panels(some: Sequence[tuple[SpanProfile, tuple[str, ...]]]) -> Markup:
    return tag("div", [_panel(*one) for one in some], class_="panels")


def _panel(profile: SpanProfile, models: tuple[str, ...]) -> Markup:
    error = profile.error
    words = (
        f"{size_text(profile.nbytes)}; error {share_text(error.median)} median, "
        f"{share_text(error.p95)} p95; {named(models) or 'of another choice of models'}"
    )
    return tag(
        "div",
        tag("h3", f"{profile.layers}, {profile.format}"),
        tag("p", words, style="font-size: 13px"),
        curves(_curves(profile), "rows of the hop", "milliseconds"),
    )


def _curves(profile: SpanProfile) -> list[Curve]:
    plain = [s for s in profile.samples if not s.size.ridden] or list(profile.samples)
    decoding = [s for s in plain if not s.size.chunks]
    contexts = sorted({s.size.kv_tokens // s.size.rows for s in decoding})
    found = []
    for colour, context in zip("ab", dict.fromkeys((contexts[0], contexts[-1])), strict=False):
        spots = [s for s in decoding if s.size.kv_tokens == context * s.size.rows]
        name = f"decoding, contexts of {context}"
        found.append(_curve(name, colour, profile, spots, _decoding(context)))
    chunks = [s for s in plain if s.size[:5] == _chunk(s.size.rows)[:5]]
    if chunks:
        found.append(_curve("one chunk of a prompt", "c", profile, chunks, _chunk))
    return found


def _decoding(context: int) -> Callable[[int], HopSize]:
    return lambda rows: HopSize.decoding(rows, rows * context)


def _chunk(rows: int) -> HopSize:
    """The first chunk of a prompt."""
    return HopSize(rows, 1, 0, rows * (rows + 1) // 2, 1)


def _curve(
    name: str,
    colour: str,
    profile: SpanProfile,
    samples: list[Sample],
    size_at: Callable[[int], HopSize],
) -> Curve:
    most = max(sample.size.rows for sample in samples)
    least = min(sample.size.rows for sample in samples)
    steps = sorted({round(least * (most / least) ** (i / 40)) for i in range(41)})
    riders = samples[0].size.riders
    line = []
    for rows in steps:
        size = size_at(rows)._replace(ridden=rows if riders else 0, riders=riders)
        line.append((float(rows), profile.cost.seconds(size) * 1e3))
    points = [(float(sample.size.rows), sample.seconds * 1e3) for sample in samples]
    return Curve(name, colour, line, sorted(points))


def _load_times(profiles: list[SpanProfile]) -> Markup:
    loads = [(p, (p.load.disk, p.load.page_cache, p.load.ready)) for p in profiles]
    most = max(sum(t or 0.0 for t in times) for _, times in loads)
    rows: list[tuple[Child, Markup, Child]] = []
    for profile, times in loads:
        parts = [
            BarPiece(name, seconds or 0.0, colour)
            for (name, colour), seconds in zip(_TIERS, times, strict=True)
        ]
        name = [profile.layers, tag("small", f"{profile.format}, {size_text(profile.nbytes)}")]
        rows.append((name, bar(parts, most, time_text), time_text(times[-1])))
    words = (
        "Loading the same spans, one piece behind the other: from disk into the page cache, "
        "through the page cache once, and from there into the form that is multiplied (the number)."
    )
    colours = [(colour, name) for name, colour in _TIERS]
    return tag("div", tag("p", words), key(colours), bars(rows))


def _numbers(facts: Facts) -> Markup:
    rows = []
    for profile, models in facts.profiles:
        cost, load = profile.cost, profile.load
        times = [cost.estimate(rows_, 128 * rows_) for rows_ in (1, 8, 32)]
        rows.append(
            (
                *(profile.layers, profile.format, size_text(profile.nbytes), named(models)),
                *map(time_text, (*times, *msgspec.structs.astuple(cost)[:-1])),
                f"{cost.knee:g}",
                *map(share_text, (profile.error.median, profile.error.p95)),
                *map(time_text, (load.disk, load.page_cache, load.ready)),
            )
        )
    columns = (
        "span", "format", "bytes", "models", "1 row", "8 rows", "32 rows", "constant", "per row",
        "per output", "per KV token", "per pair", "per chunk", "per row with delta", "per delta",
        "knee, rows",
        "median error", "p95", "from disk", "page cache", "ready",
    )  # fmt: skip
    return table(columns, rows, "The numbers; rows decode with 128 tokens of context each")
