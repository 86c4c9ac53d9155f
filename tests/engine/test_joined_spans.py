"""Who travels alone through several spans pays for one hop, and gets the same bits."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from blockllm.core import EmbedFunction, HeadFunction, LayerFunction
from blockllm.engine import Engine
from blockllm.engine.layers.block import SpanProgram
from blockllm.engine.layers.section import Section
from blockllm.engine.run.executor import Executor
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora

NARROW = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A base of four layers and a sibling that differs in the last one; adapters of one layer, of
    all layers and of a kind that layers do not fuse. A delta's number differs between blocks."""
    root: Path = tmp_path_factory.mktemp("adapted")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1, num_hidden_layers=4)
    sibling = {"copy_layers_from": base, "copied_layers": (0, 1, 2)}
    make_checkpoint(root / "sibling", seed=2, num_hidden_layers=4, **sibling)  # type: ignore[arg-type]
    make_lora(base, root / "first", seed=3, **NARROW)
    make_lora(base, root / "lora", seed=4, target_modules="all-linear")
    make_lora(base, root / "unfused", seed=5, use_dora=True, **NARROW)
    make_lora(base, root / "ends", seed=6, target_modules=["embed_tokens", "lm_head"])
    for name in ("base", "sibling"):
        zoo.add(name, root / name)
    for name in ("first", "lora", "unfused", "ends"):
        zoo.add(name, root / name, base="base")
    return zoo


def one_by_one(engine: Engine, names: list[str]) -> dict[str, Answer]:
    """Each model alone, then pairs of them; contents of prompts differ in length."""
    answers = {}
    groups = [[name] for name in names] + [names[i : i + 2] for i in range(0, len(names), 2)]
    for turn, group in enumerate(groups):
        requests = [
            request(f"{turn}-{name}", name, range(3, 12 + 7 * n), greedy(5, logprobs=3))
            for n, name in enumerate(group)
        ]
        answers |= run(engine, requests)
    return answers


@pytest.mark.parametrize("cut", ["lazy", "layers"])
@pytest.mark.parametrize("which", ["zoo", "adapted"])
def test_joined_spans_give_the_bits_of_single_ones(
    which: str, cut: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    models: Zoo = request.getfixturevalue(which)
    names = sorted(models.chains())
    options = settings(cut=cut, max_rows=16, max_sequences=4)
    joined = Engine(models, names, options)
    answers = one_by_one(joined, names)
    monkeypatch.setattr(Executor, "joins_spans", False)
    single = Engine(models, names, options)
    assert one_by_one(single, names) == answers
    assert joined.stats().spans == single.stats().spans, "every span counts its own rows"


def parts(engine: Engine, model: str) -> list[str]:
    """What a turn with this model alone goes through: decoder layers of each section, with `e` and
    `h` where it includes embedding and head."""
    seen: list[SpanProgram] = []
    executor = engine.parts.executor
    real = executor._program

    def noted(spans: tuple[int, ...], has_segments: bool) -> SpanProgram:
        seen.append(real(spans, has_segments))
        return seen[-1]

    executor._program = noted  # type: ignore[assignment]
    run(engine, [request("a", model, range(7), greedy(1))])
    return [_name(section) for program in seen for section in program.sections]


def test_weights_go_with_their_engine(adapted: Zoo) -> None:
    engine = Engine(adapted, ["base"], settings())
    run(engine, [request("a", "base", range(7), greedy(2))])
    executor = weakref.ref(engine.parts.executor)
    gc.disable()
    try:
        del engine
        assert executor() is None
    finally:
        gc.enable()


def _name(section: Section) -> str:
    functions = [layer.function for layer in section.layers]
    decoders = sum(isinstance(function, LayerFunction) for function in functions)
    before = "e" if isinstance(functions[0], EmbedFunction) else ""
    behind = "h" if isinstance(functions[-1], HeadFunction) else ""
    return f"{before}{decoders or ''}{behind}"


def test_layers_of_many_blocks_are_one_call_where_the_rows_add_the_same(adapted: Zoo) -> None:
    engine = Engine(adapted, ["base", "sibling", "first", "lora", "unfused"], settings())
    assert parts(engine, "base") == ["e4h"]
    assert parts(engine, "sibling") == ["e4h"]
    assert parts(engine, "lora") == ["e1", "1", "2h"]  # another number in the second layer
    assert parts(Engine(adapted, ["ends"], settings()), "ends") == ["e", "4", "h"]
    assert parts(Engine(adapted, ["lora"], settings(cut="layers")), "lora") == ["e4h"]


@pytest.mark.parametrize(
    ("second", "calls"),
    [
        ((({"m"}, True), ({"n"}, True)), 1),
        ((({"n"}, True), ({"m"}, True)), 2),  # other numbers
        ((({"m"}, False), ({"n"}, True)), 2),  # the first block fuses what the second does not
        ((({"m"}, True),), 2),
    ],
)
def test_blocks_are_alike_where_the_same_models_add_what_fuses(
    adapted: Zoo, second: tuple[tuple[set[str], bool], ...], calls: int
) -> None:
    executor = Engine(adapted, ["base"], settings(cut="layers")).parts.executor
    blocks = executor._program((1, 2), False).blocks
    of_first = (({"m"}, True), ({"n"}, True))
    for block, riders in zip(blocks, (of_first, second), strict=True):
        block.riders = tuple((frozenset(models), fuses) for models, fuses in riders)
    assert len(SpanProgram(blocks, has_segments=True).sections) == calls
    assert len(SpanProgram(blocks, has_segments=False).sections) == 1
