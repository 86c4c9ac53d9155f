"""Where a turn's time goes: runs the engine in this process on a synthetic load and books every
part of every turn. docs/profile.md says how to read the result."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from blockllm.bench.bound import Bound, Needs, bound_of
from blockllm.bench.roofline import Limits
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.observability.timeline import OFF, Recorder, Timing

_DEVICE_WORK = ("compute", "sample")  # parts that are not "outside compute"


class EngineLoad(msgspec.Struct, frozen=True):
    """Random prompts that arrive together; the models take turns."""

    models: tuple[str, ...]
    concurrency: int = 32
    prompt: int = 128
    output: int = 64
    temperature: float = 0.0
    seed: int = 0

    def requests(self, vocab: int, round: int) -> list[Request]:
        """One request per place; prompts differ between rounds, so that no prefix is known."""
        chosen = np.random.default_rng((self.seed, round))
        sampling = Sampling(
            max_tokens=self.output, temperature=self.temperature, ignore_eos=True, seed=self.seed
        )
        return [
            Request(
                id=f"{round}-{i}",
                model=self.models[i % len(self.models)],
                prompt=tuple(chosen.integers(0, vocab, self.prompt).tolist()),
                sampling=sampling,
            )
            for i in range(self.concurrency)
        ]


class Share(msgspec.Struct, frozen=True):
    """Milliseconds per turn of one part, inner parts not counted."""

    name: str
    mean: float
    share: float  # of the turn
    median: float
    p95: float


class SpanShare(msgspec.Struct, frozen=True):
    """Hops through the same spans: medians, times in milliseconds."""

    spans: tuple[int, ...]
    hops: int
    rows: float
    wait: float
    gather: float
    compute: float  # without gathering
    hand_over: float


class Phase(msgspec.Struct, frozen=True):
    """Turns of one kind."""

    turns: int
    rows: float  # per turn, median
    hops: float  # per turn, mean
    turn: Share
    parts: tuple[Share, ...]
    outside: Share  # all but compute and sampling
    outside_per_hop: float  # mean
    spans: tuple[SpanShare, ...]


class Profile(msgspec.Struct, frozen=True):
    """Turns in which every sequence computed one row, and all others."""

    decode: Phase | None
    prompts: Phase | None
    bound: Bound | None  # of decoding turns
    off_microseconds: float  # what the timeline costs a turn with as many parts when it is off


class _Turn(NamedTuple):
    whole: Timing
    inner: list[Timing]

    @property
    def hops(self) -> list[Timing]:
        return [p for p in self.inner if p.name == "compute"]

    @property
    def rows(self) -> int:
        """Of the turn: the first hops are those of the rows that enter."""
        entering: dict[int, int] = defaultdict(int)
        for hop in self.hops:
            entering[hop.track] += hop.facts["rows"]
        return max(entering.values())

    @property
    def decodes(self) -> bool:
        return all(hop.facts["rows"] == hop.facts["sequences"] for hop in self.hops)


def run_load(engine: Engine, requests: Iterable[Request]) -> int:
    """Submit all, step until done; the number of tokens that came out."""
    for request in requests:
        engine.submit(request)
    tokens = 0
    while engine.has_work:
        tokens += sum(event.token is not None for event in engine.step())
    engine.check_books()
    return tokens


def summarise(recorder: Recorder, needs: Needs, limits: Limits) -> Profile:
    """Tables of everything recorded. The load must have computed something."""
    turns = _turns(recorder.parts)
    # parts inside compute are there for `--detail` only, but for gathering
    lasting = sum("compute" not in p.path or p.name == "gather" for p in recorder.parts)
    parts_per_turn = lasting / max(len(turns), 1)
    decode = [turn for turn in turns if turn.decodes]
    prompts = [turn for turn in turns if not turn.decodes]
    return Profile(
        decode=_phase(decode, recorder.waits) if decode else None,
        prompts=_phase(prompts, recorder.waits) if prompts else None,
        bound=_bound(decode, needs, limits) if decode else None,
        off_microseconds=parts_per_turn * off_cost(),
    )


def _bound(turns: list[_Turn], needs: Needs, limits: Limits) -> Bound:
    works = [needs.of_hops([hop.facts for hop in turn.hops]) for turn in turns]
    seconds = [turn.whole.duration / 1e9 for turn in turns]
    return bound_of(zip(works, seconds, strict=True), limits)


def _turns(parts: Sequence[Timing]) -> list[_Turn]:
    turns, inner = [], list[Timing]()
    for part in parts:  # inner ones first
        if part.name == "turn":
            if any(p.name == "compute" for p in inner):
                turns.append(_Turn(part, inner))
            inner = []
        else:
            inner.append(part)
    return turns


def _phase(turns: list[_Turn], waits: Sequence[Timing]) -> Phase:
    whole = np.array([turn.whole.duration for turn in turns]) / 1e6  # [turns] ms
    own: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(turns)))
    outside = whole.copy()
    for index, turn in enumerate(turns):
        own["other"][index] = turn.whole.own / 1e6
        for part in turn.inner:
            own[_label(part)][index] += part.own / 1e6
            if _is_device_work(part):
                outside[index] -= part.own / 1e6
    hops = sum(len(turn.hops) for turn in turns)
    total = float(whole.mean())
    shares = [_share(name, values, total) for name, values in own.items()]
    return Phase(
        turns=len(turns),
        rows=float(np.median([turn.rows for turn in turns])),
        hops=hops / len(turns),
        turn=_share("turn", whole, total),
        parts=tuple(sorted(shares, key=lambda share: -share.mean)),
        outside=_share("outside compute", outside, total),
        outside_per_hop=float(outside.sum()) / hops,
        spans=tuple(_spans(turns, waits)),
    )


def _label(part: Timing) -> str:
    return f"compute: {part.name}" if "compute" in part.path else part.name


def _is_device_work(part: Timing) -> bool:
    return part.name != "gather" and bool({part.name, *part.path} & set(_DEVICE_WORK))


def _share(name: str, milliseconds: np.ndarray, total: float) -> Share:
    mean = float(milliseconds.mean())
    median, p95 = np.percentile(milliseconds, (50, 95)).tolist()
    return Share(name, mean, mean / total, median, p95)


def _spans(turns: list[_Turn], waits: Sequence[Timing]) -> list[SpanShare]:
    seen: dict[tuple[int, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        for hop in turn.hops:
            gathers = [p for p in turn.inner if p.name == "gather" and _within(p, hop)]
            gather = sum(p.duration for p in gathers) / 1e6
            own = seen[_passed(hop)]
            own["rows"].append(hop.facts["rows"])
            own["gather"].append(gather)
            own["compute"].append(hop.duration / 1e6 - gather)
        for part in turn.inner:
            if part.name == "hand over":
                seen[_passed(part)]["hand_over"].append(part.duration / 1e6)
    bounds = [(turn.whole.start, turn.whole.end) for turn in turns]
    starts = np.array([start for start, _ in bounds])
    for wait in waits:
        turn_index = int(np.searchsorted(starts, wait.start, side="right")) - 1
        if turn_index >= 0 and wait.end <= bounds[turn_index][1]:
            seen[_passed(wait)]["wait"].append(wait.duration / 1e6)
    return [
        SpanShare(
            spans=spans,
            hops=len(values["rows"]),
            **{name: float(np.median(values[name])) for name in SpanShare.__struct_fields__[2:]},
        )
        for spans, values in sorted(seen.items())
    ]


def _passed(part: Timing) -> tuple[int, ...]:
    return tuple(part.facts["spans"])


def _within(inner: Timing, outer: Timing) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def off_cost(count: int = 20_000) -> float:
    """Microseconds that one part costs while the timeline is off, measured now."""
    start = time.perf_counter()
    for _ in range(count):
        with OFF.part("compute"):
            pass
    return (time.perf_counter() - start) / count * 1e6


def make_recorder(device: str) -> Recorder:
    """A recorder that waits for the device before it reads the clock."""
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return Recorder(torch.cuda.synchronize if cuda else None)


def track_names(engine: Engine) -> dict[int, str]:
    """Names of an engine's spans for a trace."""
    spans: Iterable[Any] = engine.stats().spans
    return {
        index: f"span {index} {span.name} ({len(span.models)} models)"
        for index, span in enumerate(spans)
    }


def shorter(load: EngineLoad) -> EngineLoad:
    """A load that touches the same code and weights for a fraction of the time."""
    return msgspec.structs.replace(load, prompt=min(load.prompt, 16), output=min(load.output, 4))
