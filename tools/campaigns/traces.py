"""Random traces of many requests on an engine with too little of everything.

After GRIEF (arXiv 2605.11202): well-formed requests whose timing and company are drawn at random.
Each answer has to equal the answer to the same request alone, bit for bit; the books have to
balance behind each trace, no trace may hang, and memory has to stay flat. Models of two KV shapes
that share layers, with adapters of many kinds; tenants, salts, common beginnings, cancels,
preemption; every policy, and one that decides at random.

    python -m tools.campaigns.traces --requests 100000
    python -m tools.campaigns.traces --random             # every trace by the policy at random
    python -m tools.campaigns.traces --seed 17            # this trace alone
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling, TokenEvent, TokenLogprobs
from blockllm.engine import Engine
from blockllm.engine.scheduler import Scheduler
from blockllm.errors import TooManyRequests
from blockllm.zoo import Zoo
from tools.campaigns import makings
from tools.campaigns.random_policy import RandomPolicy

QUESTIONS = 1200  # distinct requests; each is answered alone once
OF_A_TRACE = 80  # requests
MAX_TURNS = 20_000  # a trace with more of them hangs
KINDS = ("lora", "dora", "bitfit", "bottleneck", "ia3", "norms", "prefix", "prompt", "tokens")
PLAIN = EngineSettings(
    device="cpu", memory="64MiB", dtype="float32", max_turn_seconds=0.0, prefix_cache=False
)


class Question(NamedTuple):
    """A question: what is asked of which model, by tenant and salt apart."""

    model: str
    prompt: tuple[int, ...]
    sampling: Sampling


class Answer(NamedTuple):
    """What came back."""

    tokens: tuple[int, ...]
    finish: str
    logprobs: tuple[TokenLogprobs | None, ...]


def answer_of(events: list[TokenEvent]) -> Answer:
    """What the events of one request say."""
    given = [event for event in events if event.token is not None]
    return Answer(
        tuple(event.token for event in given if event.token is not None),
        str(events[-1].finish or ""),
        tuple(event.logprobs for event in given),
    )


class Found(NamedTuple):
    """What was seen in one trace; `wrong` says what should not have been."""

    counts: Counter[str]
    wrong: list[str]
    seconds: float


def build(scratch: Path) -> Zoo:
    """Full models that share layers or nothing, and adapters of many kinds."""
    from tests.makers import make_checkpoint

    zoo = makings.zoo(scratch)
    base = makings.base(scratch)
    zoo.add("int8", base, format="int8")
    upper = {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True, "tokenizer": True}
    make_checkpoint(scratch / "upper", seed=2, copy_layers_from=base, copied_layers=(0,), **upper)
    make_checkpoint(scratch / "lonely", "qwen3", seed=4, head_dim=16, num_hidden_layers=3)
    make_checkpoint(scratch / "window", "mistral", seed=5, num_hidden_layers=3, sliding_window=7)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    make_checkpoint(
        scratch / "dynamic",
        "qwen2",
        seed=6,
        num_hidden_layers=2,
        max_position_embeddings=48,
        rope_parameters=dynamic,
    )
    for name in ("upper", "lonely", "window", "dynamic"):
        zoo.add(name, scratch / name)
    for kind in KINDS:
        if kind not in {card.name for card in zoo.cards()}:
            zoo.add(kind, makings.adapter(scratch, kind), base=makings.BASE)
    return zoo


class Book:
    """Questions that follow from the seed alone, and their answers alone."""

    def __init__(self, zoo: Zoo, seed: int = 0) -> None:
        chosen = random.Random(seed)
        self._alone = Engine(zoo, None, PLAIN)
        self.models = list(self._alone.parts.states)
        begins = [[chosen.randrange(90) for _ in range(40)] for _ in range(4)]
        self.questions = [self._question(chosen, begins) for _ in range(QUESTIONS)]

    def _question(self, chosen: random.Random, begins: list[list[int]]) -> Question:
        common = chosen.choice(begins)[: chosen.choice((0, 0, 5, 16, 40))]
        own = [chosen.randrange(90) for _ in range(chosen.randint(1, chosen.choice((4, 30))))]
        sampling = Sampling(
            max_tokens=chosen.randint(1, chosen.choice((3, 16))),
            temperature=chosen.choice((0.0, 0.0, 0.7, 1.5)),
            top_p=chosen.choice((1.0, 0.8)),
            top_k=chosen.choice((0, 7)),
            min_p=chosen.choice((0.0, 0.1)),
            presence_penalty=chosen.choice((0.0, 0.0, 0.5)),
            repetition_penalty=chosen.choice((1.0, 1.0, 1.3)),
            seed=chosen.randrange(2**31),
            stop_ids=tuple(chosen.sample(range(90), chosen.choice((0, 3)))),
            logprobs=chosen.choice((None, None, 2)),
        )
        return Question(chosen.choice(self.models), tuple(common + own), sampling)

    @functools.cache  # noqa: B019
    def answer(self, number: int) -> Answer:
        """The answer to a question on an engine that has nothing else to do."""
        asked = self.questions[number]
        self._alone.submit(Request("alone", *asked))
        events = []
        while self._alone.has_work:
            events += self._alone.step()
        return answer_of(events)


def settings_of(chosen: random.Random) -> EngineSettings:
    """Little memory, few slots, small chunks; everything that must not show in a token."""
    values: dict[str, Any] = {
        "batching": chosen.choice(("blocks", "blocks", "models", "layered", "lanes")),
        "cut": chosen.choice(("lazy", "layers")),
        "overlap": chosen.choice(("off", "on")),
        "page_size": chosen.choice((1, 4, 16)),
        "max_sequences": chosen.choice((2, 8, 24)),
        "prefix_cache": chosen.random() < 0.7,
        "memory": chosen.choice(("1300KiB", "1500KiB", "3MiB")),
    }
    values["max_rows"] = chosen.choice((values["max_sequences"], 40, 200))
    if values["batching"] == "lanes":
        values |= {"threads": chosen.choice((2, 3)), "overlap": "off"}
    values["max_rows"] = max(values["max_rows"], values["max_sequences"])
    values["block_limits"] = chosen.choice(("off", "off", "1", "3", "20"))
    return msgspec.structs.replace(PLAIN, **values)


def play(zoo: Zoo, book: Book, seed: int, is_random: bool = False) -> Found:
    """One trace. Everything but the clock follows from the seed. `is_random`: by the policy that
    decides at random."""
    chosen, start = random.Random(seed), time.monotonic()
    settings = settings_of(chosen)
    engine = Engine(zoo, None, settings)
    # pages that others generated, and other sizes of pages, change roundings
    keeps_bits = not settings.prefix_cache and settings.page_size == PLAIN.page_size
    if chosen.random() < 0.3 or is_random:
        engine._scheduler.policy = RandomPolicy(seed)
    running: dict[str, tuple[int, list[TokenEvent]]] = {}
    counts, wrong = Counter[str](), list[str]()
    pace, turns, asked = chosen.choice((0.2, 1.0, 8.0)), 0, 0
    while asked < OF_A_TRACE or engine.has_work:
        turns += 1
        for _ in range(min(OF_A_TRACE - asked, int(chosen.expovariate(1 / pace)))):
            number, asked = chosen.randrange(QUESTIONS), asked + 1
            tenant = chosen.choice("abc")
            names = {"tenant": tenant, "salt": tenant}
            offline = asked % 4 == 0
            request = Request(f"{asked}", *book.questions[number], **names, offline=offline)
            try:
                engine.submit(request)
                running[request.id] = number, []
            except TooManyRequests:
                counts["refused"] += 1
        if running and chosen.random() < 0.01:
            gone = chosen.choice(list(running))
            engine.cancel(gone)
            del running[gone]
            counts["cancelled"] += 1
        for event in engine.step():
            if event.request not in running:
                wrong.append(f"an event of {event.request}, which is over")
                continue
            number, events = running[event.request]
            events.append(event)
            if event.finish:
                del running[event.request]
                counts["answered"] += 1
                counts["compared bit for bit"] += keeps_bits
                found, alone = answer_of(events), book.answer(number)
                if not keeps_bits:
                    found, alone = (each._replace(logprobs=()) for each in (found, alone))
                if found != alone:
                    wrong.append(f"question {number}: {found}, alone {alone}")
        if turns > MAX_TURNS:
            wrong.append(f"{len(running)} requests are not answered after {turns} turns")
            break
    try:
        engine.check_books()
    except AssertionError as error:
        wrong.append(f"the books do not balance: {error}")
    stats = engine.stats()
    counts += Counter(asked=asked, turns=turns, preempted=stats.preemptions)
    counts["tokens on known pages"] += stats.prefix_hits
    return Found(counts, [f"trace {seed}: {what}" for what in wrong], time.monotonic() - start)


def campaign(requests: int, first: int = 0, is_random: bool = False) -> dict[str, Any]:
    """Traces from the seed `first` on until so many requests were sent; the report."""
    total, wrong, seconds, resident = Counter[str](), list[str](), list[float](), list[int]()
    process, start = psutil.Process(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        zoo = build(Path(scratch))
        book = Book(zoo)
        while total["asked"] < requests:
            found = play(zoo, book, first + len(seconds), is_random)
            total += found.counts
            wrong += found.wrong
            seconds.append(found.seconds)
            resident.append(process.memory_info().rss)
    fifth = max(1, len(resident) // 5)
    early, late = resident[fifth : 2 * fifth] or resident, resident[-fifth:]
    return {
        "traces": len(seconds),
        "first_seed": first,
        **dict(total),
        "models": book.models,
        "seconds": round(time.monotonic() - start),
        "slowest_trace_seconds": round(max(seconds), 1),
        "resident_mb": {
            "second fifth": round(statistics.median(early) / 1e6, 1),
            "last fifth": round(statistics.median(late) / 1e6, 1),
        },
        "wrong": wrong,
    }


def main() -> None:
    """Exit status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, help="one trace")
    parser.add_argument("--random", action="store_true", help="the policy at random in each trace")
    parser.add_argument("--out", type=Path, help="the report as JSON")
    given = parser.parse_args()
    Scheduler.checks_plans = True
    single = given.seed is not None
    report = campaign(1 if single else given.requests, given.seed or 0, given.random)
    text = json.dumps(report, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    raise SystemExit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
