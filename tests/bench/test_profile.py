"""The timeline: a valid trace whose parts nest, sums that add up, and nothing at all when off."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from blockllm.bench import profile
from blockllm.bench.bound import Demand, Needs, bound_of
from blockllm.bench.profile_detail import TARGETS, layer_parts
from blockllm.bench.roofline import Limits
from blockllm.cli import bench_engine
from blockllm.core import LayerFunction
from blockllm.engine import Engine
from blockllm.engine.layers.linear import SharedLinear
from blockllm.observability.timeline import OFF, Recorder, Timeline, trace_events
from blockllm.zoo import Zoo
from tests.driver import settings
from tests.engine.conftest import zoo  # noqa: F401

MODELS = ("base", "upper", "lora-all")
LIMITS = Limits("cpu", 1, "float32", 1, bytes_per_second=1e9, flops_per_second=1e9, how="said")
LOAD = profile.EngineLoad(MODELS, concurrency=5, prompt=9, output=4)


def record(zoo: Zoo, detail: bool = False) -> tuple[Engine, Recorder]:  # noqa: F811
    recorder = Recorder()
    engine = Engine(zoo, MODELS, settings(), timeline=recorder)
    with layer_parts(recorder, detail):
        assert profile.run_load(engine, LOAD.requests(96, 0)) == 5 * 4
    return engine, recorder


def summarise(engine: Engine, recorder: Recorder) -> profile.Profile:
    needs = Needs(engine.parts.plan, engine.parts.precision, context=11)
    return profile.summarise(recorder, needs, LIMITS)


def test_the_trace_is_in_the_chrome_format(zoo: Zoo, tmp_path: Path) -> None:  # noqa: F811
    engine, recorder = record(zoo, detail=True)
    tracks = profile.track_names(engine)
    events = json.loads(json.dumps(trace_events(recorder, tracks)))
    named = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert named[0] == "loop" and len(named) == 1 + len(engine.stats().spans)
    for event in events:
        assert {"name", "ph", "pid", "tid", "args"} <= event.keys()
        assert event["ph"] in "MXbe" and event["tid"] in named
        assert event["ph"] == "M" or event["ts"] >= 0
    complete = [e for e in events if e["ph"] == "X"]
    assert [e["ts"] for e in complete] == sorted(e["ts"] for e in complete)
    check_nesting(complete)
    hops = [e for e in complete if e["name"] == "compute"]
    assert len(hops) == sum(span.hops for span in engine.stats().spans)
    assert all(set(h["args"]) == {"spans", "rows", "sequences", "models"} for h in hops)
    assert {m for h in hops for m in h["args"]["models"]} == set(MODELS)
    check_waits([e for e in events if e["ph"] in "be"], len(hops))


def check_nesting(complete: list[dict[str, Any]]) -> None:
    """On one track, a part lies within another or beside it."""
    by_track = defaultdict(list)
    for event in complete:
        assert event["dur"] >= 0
        by_track[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_track.values():
        open_ends: list[float] = []
        for start, end in spans:
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 1e-6
            open_ends.append(end)


def check_waits(waits: list[dict[str, Any]], hops: int) -> None:
    pairs = defaultdict(dict)
    for event in waits:
        pairs[event["id"]][event["ph"]] = event
    assert len(pairs) == hops
    for pair in pairs.values():
        assert pair["b"]["ts"] <= pair["e"]["ts"]


def test_the_parts_of_a_turn_add_up(zoo: Zoo) -> None:  # noqa: F811
    engine, recorder = record(zoo)
    summary = summarise(engine, recorder)
    assert summary.decode is not None and summary.prompts is not None
    assert (summary.decode.turns, summary.prompts.turns) == (3, 1)
    assert (summary.decode.rows, summary.prompts.rows) == (5, 45)
    assert summary.bound is not None and summary.bound.fraction > 0
    for phase in (summary.decode, summary.prompts):
        assert sum(p.mean for p in phase.parts) == pytest.approx(phase.turn.mean)
        device = sum(p.mean for p in phase.parts if p.name in ("compute", "sample"))
        assert phase.outside.mean == pytest.approx(phase.turn.mean - device)
        assert sum(s.hops for s in phase.spans) == phase.hops * phase.turns


def test_detail_splits_compute_and_is_gone_afterwards(zoo: Zoo) -> None:  # noqa: F811
    original = SharedLinear.__call__
    engine, recorder = record(zoo, detail=True)
    assert SharedLinear.__call__ is original
    names = {part.name for part in recorder.parts}
    assert {part for *_, part in TARGETS} <= names
    summary = summarise(engine, recorder)
    assert summary.decode is not None
    device = [p for p in summary.decode.parts if p.name.startswith("compute")]
    device = [p for p in device if p.name != "compute: gather"]
    sampled = [p for p in summary.decode.parts if p.name == "sample"]
    total = sum(p.mean for p in [*device, *sampled])
    assert summary.decode.outside.mean == pytest.approx(summary.decode.turn.mean - total)


def test_off_records_nothing_and_answers_are_the_same(zoo: Zoo) -> None:  # noqa: F811
    with OFF.part("turn"), OFF.part("compute"):
        assert OFF.now() == 0
    assert not vars(OFF) and type(OFF) is Timeline
    recorder = Recorder()
    tokens = []
    for timeline in (OFF, recorder):
        engine = Engine(zoo, MODELS, settings(), timeline=timeline)
        for request in LOAD.requests(96, 0):
            engine.submit(request)
        seen = []
        while engine.has_work:
            seen += [(event.request, event.token) for event in engine.step()]
        tokens.append(seen)
    assert tokens[0] == tokens[1] and recorder.parts


def test_own_time_leaves_out_inner_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 10, 40, 100])
    recorder = Recorder()
    monkeypatch.setattr(recorder, "now", lambda: next(ticks))
    with recorder.part("outer"), recorder.part("inner"):
        pass
    inner, outer = recorder.parts
    assert (inner.duration, inner.own, inner.path) == (30, 30, ("outer",))
    assert (outer.duration, outer.own, outer.path) == (100, 70, ())


def test_the_command_prints_and_writes(
    zoo: Zoo,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_engine.profile(
        zoo=str(zoo._folder.root),
        models="base,upper",
        concurrency=3,
        prompt=5,
        output=3,
        memory="64MiB",
        device="cpu",
        out=tmp_path / "trace.json",
        json_file=tmp_path / "p.json",
    )
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "p.json").read_text())["profile"]["decode"]["turns"] == 2
    printed = capsys.readouterr().out
    assert "outside compute" in printed and "limit: a decoding turn reads" in printed


def test_a_turn_needs_weights_deltas_and_pages_once_per_hop(zoo: Zoo) -> None:  # noqa: F811
    engine, chains = Engine(zoo, MODELS, settings()), zoo.chains(MODELS)
    needs = Needs(engine.parts.plan, engine.parts.precision, context=10)
    spans = {m: [s.span for s in r.stops] for m, r in engine.parts.plan.routes.items()}
    alone = needs.of_hops([{"spans": spans["base"], "rows": 3, "models": ["base"]}])
    layers = [layer for entry in chains["base"].entries for layer in entry.block.layers]
    function = layers[1].function
    assert isinstance(function, LayerFunction)
    tensors = [t for layer in layers[1:] for t in layer.tensors.values()]
    pages = 3 * 10 * (len(layers) - 2) * 2 * function.num_kv_heads * function.head_dim * 4
    assert alone.num_bytes == sum(t.nbytes for t in tensors) + pages
    products = sum(2 * 3 * math.prod(t.shape) for t in tensors if len(t.shape) == 2)
    pairs = 3 * 10 * (len(layers) - 2) * 4 * function.num_heads * function.head_dim
    assert alone.flops == products + pairs

    adapted = needs.of_hops(
        [{"spans": [s], "rows": 3, "models": ["lora-all"]} for s in spans["base"]]
    )
    deltas = [e.delta.tensors() for e in chains["lora-all"].entries if e.delta]
    assert adapted.num_bytes == alone.num_bytes + sum(t.nbytes for d in deltas for t in d)
    assert adapted.flops == alone.flops


def test_the_larger_limit_is_the_bound() -> None:
    bound = bound_of([(Demand(4e6, 1e6), 8e-3), (Demand(1e6, 5e6), 10e-3)], LIMITS)
    assert (bound.milliseconds, bound.fraction) == (pytest.approx(4.5), pytest.approx(0.5))
