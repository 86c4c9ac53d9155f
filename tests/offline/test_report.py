"""The report: sums that add up, pages that hold whatever a name contains, plots that parse."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.chain import plan_spans
from blockllm.cli import report as command
from blockllm.core import Measurement, Tensor
from blockllm.engine.costs.profiles import (
    KIND,
    Device,
    FitError,
    LoadSeconds,
    Sample,
    SpanProfile,
    shapes_of,
)
from blockllm.engine.costs.span import HopSize, SpanCost
from blockllm.errors import ZooError
from blockllm.offline.report import plots
from blockllm.offline.report.facts import collect, numbers_in
from blockllm.offline.report.groups import MOST_COMPARED, make_groups
from blockllm.offline.report.markup import Markup, tag
from blockllm.offline.report.models import ModelFacts, tensors_of, tier_of
from blockllm.offline.report.page import headline, render
from blockllm.offline.report.sections import sideways
from blockllm.offline.report.style import CSS
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora

Tensors = dict[str, dict[str, Tensor]]

EVIL = "<script>alert(1)</script>"
_VOID = {"meta", "br", "rect", "line", "circle", "polyline", "path"}


class Page(HTMLParser):
    """Elements and text of a page; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.shown: list[str] = []  # names of elements that no closed <details> hides
        self._closed = 0
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if not self._closed:
            self.shown.append(tag)
        if tag == "details" and (self._closed or ("open", "") not in attrs):
            self._closed += 1
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "details" and self._closed:
            self._closed -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


class Pair(msgspec.Struct):
    """A finding about two layers as other parts of the program write them."""

    lens: dict[str, float]
    quality: dict[str, dict[str, float]]
    note: str = EVIL


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A base, a fine-tune of its upper layers, an adapter, an int8 copy; an evil name among the
    folders, an evil reference among the measurements."""
    root = tmp_path_factory.mktemp("report")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / EVIL.replace("/", "_"), seed=1)
    make_checkpoint(root / "upper", seed=2, copy_layers_from=base, copied_layers=(0, 1))
    zoo.add("base", base)
    zoo.add("upper", root / "upper")
    zoo.add("adapter", make_lora(base, root / "lora"), base="base")
    zoo.add("small", base, format="int8")
    return zoo


def measurement(model: str, reference: str) -> Measurement:
    return Measurement(
        model, reference, perplexity=10.1, reference_perplexity=10.0, kl=0.002, agreement=0.98,
        num_tokens=100, window=64, text="ab" * 32, created=0.0, versions={},
    )  # fmt: skip


def some_profile(shape: str, device: str = "A processor") -> SpanProfile:
    cost = SpanCost(1e-5, 1e-6, 0, 1e-9, 1e-9, 0, 0, 0, knee=8)
    sizes = [HopSize.decoding(n, n * c) for n in (1, 4, 16) for c in (16, 64)]
    sizes += [HopSize(n, 1, 0, n * (n + 1) // 2, 1) for n in (8, 32)]
    return SpanProfile(
        shape=shape,
        device=Device(device, "cpu", 2, "float32", "auto", {"torch": "2"}),
        format="F32",
        layers="4 decoder",
        nbytes=1234,
        cost=cost,
        error=FitError(0.02, 0.11, 15),
        load=LoadSeconds(None, 0.001, 0.002),
        samples=tuple(Sample(size, cost.seconds(size) * 1.1) for size in sizes),
        created=0.0,
    )


def test_bytes_add_up(zoo: Zoo) -> None:
    facts = collect(zoo)
    packs = {
        tensor.hash: tensor.nbytes
        for chain in zoo.chains().values()
        for entry in chain.entries
        for tensor in [t for layer in entry.block.layers for t in layer.tensors.values()]
        + (entry.delta.tensors() if entry.delta else [])
    }
    assert facts.stored == sum(packs.values())
    assert facts.separate == sum(card.total_bytes for card in zoo.cards())
    assert facts.stored < facts.files < facts.separate
    assert sum(tier.stored for tier in facts.tiers) == facts.stored
    assert sum(tier.separate for tier in facts.tiers) == facts.separate
    assert {t.tier: t.models for t in facts.tiers} == {
        "exact": ("base", "upper"), "delta": ("adapter",), "rounded": ("small",),
    }  # fmt: skip


def test_pairs_are_symmetric_and_say_what_is_shared(zoo: Zoo) -> None:
    (group,) = collect(zoo).groups
    names = [each.label for each in group.alike]
    sizes = {model.card.name: model.card.total_bytes for model in group.models}
    for row, line in enumerate(group.shared):
        assert line[row] == sizes[names[row]]
        assert [group.shared[column][row] for column in range(len(names))] == list(line)
    base, upper, adapter = (names.index(name) for name in ("base", "upper", "adapter"))
    assert group.shared[base][adapter] == sizes["base"]
    assert 0 < group.shared[base][upper] < group.shared[base][base]


def test_layers_know_their_riders_and_deltas(zoo: Zoo) -> None:
    models = {model.card.name: model.layers for model in collect(zoo).models}
    three = ("base", "upper", "adapter")
    assert [layer.riders for layer in models["upper"]] == [
        (*three, "small"), three, three, ("upper",), ("upper",), three,
    ]  # fmt: skip
    assert [layer.has_delta for layer in models["adapter"]] == [False, *[True] * 4, False]
    assert not any(layer.has_delta for layer in models["base"])


def copies(zoo: Zoo, name: str, count: int) -> tuple[list[ModelFacts], Tensors]:
    """The zoo's models and as many like the one of this name, more bytes with every one."""
    chains = zoo.chains()
    tensors = {name: tensors_of(chain) for name, chain in chains.items()}
    models = list(collect(zoo).models)
    (one,) = (model for model in models if model.card.name == name)
    for number in range(count):
        own_bytes = one.card.own_bytes + number
        card = msgspec.structs.replace(one.card, name=f"{name}-{number}", own_bytes=own_bytes)
        models.append(one._replace(card=card))
        tensors[card.name] = tensors[name]
    return models, tensors


def test_models_alike_are_one_row_behind_their_base(zoo: Zoo) -> None:
    (group,) = make_groups(*copies(zoo, "adapter", 30))
    assert group.name == "base"
    assert [each.label for each in group.alike] == ["base", "adapter-29 +30", "upper", "small"]
    own = [model.card.own_bytes for model in group.models[1:]]
    assert own == sorted(own, reverse=True)


def test_models_that_share_nothing_are_apart(zoo: Zoo) -> None:
    models, tensors = copies(zoo, "upper", 1)
    layers = [layer._replace(digest=f"other {layer.digest}") for layer in models[-1].layers]
    models[-1] = models[-1]._replace(layers=tuple(layers))
    groups = make_groups(models, tensors)
    assert [[model.card.name for model in group.models] for group in groups] == [
        ["base", "upper", "small", "adapter"], ["upper-0"]
    ]  # fmt: skip
    text = Page(render(collect(zoo)._replace(models=tuple(models), groups=groups))).text
    assert "base: 4 models in " in text and "1 model that no other shares a layer with" in text


def test_what_is_seen_does_not_grow_with_the_zoo(zoo: Zoo) -> None:
    facts = collect(zoo)
    sizes, seen = [], []
    for count in (30, 60, 120):
        models, tensors = copies(zoo, "upper", count)
        # half of them stay alike, the others differ in one layer
        for i in range(5, len(models), 2):
            first = models[i].layers[1]._replace(digest=f"layer {i}")
            models[i] = models[i]._replace(layers=(models[i].layers[0], first))
        groups = make_groups(models, tensors)
        text = render(facts._replace(models=tuple(models), groups=groups))
        sizes.append(len(text))
        seen.append(Page(text).shown.count("svg"))
        assert f"{count + 4} models in" in Page(text).text
    assert seen[0] == seen[1] == seen[2] < 40
    assert sizes[2] - sizes[1] < 2500 * 60  # a kilobyte or two for a model, not one for a pair


def test_pairs_beyond_the_bound_are_counted(zoo: Zoo) -> None:
    models, tensors = copies(zoo, "upper", MOST_COMPARED)
    for i in range(4, len(models)):
        first = models[i].layers[1]._replace(digest=f"layer {i}")
        models[i] = models[i]._replace(layers=(models[i].layers[0], first))
    (group,) = make_groups(models, tensors)
    assert len(group.shared) == MOST_COMPARED
    page = Page(render(collect(zoo)._replace(models=tuple(models), groups=(group,))))
    assert "The first 12 rows are drawn" in page.text
    assert "4 more rows are not compared: blockllm zoo show NAME" in page.text


def test_what_may_be_wider_than_a_page_says_so() -> None:
    plot = Markup("<svg></svg>")
    assert "scroll sideways" not in Page(sideways(plot, 300)).text
    for width, name in ((330, "narrow"), (900, "wide"), (1200, "always")):
        page = Page(sideways(plot, width))
        assert "scroll sideways" in page.text and ("class", f"hint {name}") in page.attributes
        assert f".hint.{name} {{ display: block; }}" in CSS


def test_a_lossy_model_without_measurement_is_named(zoo: Zoo) -> None:
    facts = collect(zoo)
    assert facts.unmeasured == ("small",) and not facts.losses
    assert "Lossy and not measured: small" in Page(render(facts)).text


def test_names_cannot_become_markup(zoo: Zoo) -> None:
    """Folders, references, findings, devices: every string that a user or another machine wrote."""
    facts = collect(zoo)
    shape = shapes_of(plan_spans(zoo.chains().values()))[0]
    model = facts.models[0]
    card = msgspec.structs.replace(model.card, name=EVIL, root=EVIL, parent=f'"{EVIL}', kind=EVIL)
    renamed = model._replace(card=card)
    (group,) = facts.groups
    evil = facts._replace(
        models=(renamed, *facts.models[1:]),
        groups=(group._replace(name=EVIL, models=(renamed, *group.models)),),
        losses=(measurement(EVIL, f"'{EVIL}"),),
        unmeasured=(EVIL,),
        profiles=((some_profile(shape, EVIL), (EVIL,)),),
        tiers=(facts.tiers[0]._replace(models=(EVIL,)),),
    )
    for text in (render(facts), render(evil)):
        page = Page(text)
        assert "script" not in page.names and "<script" not in text
        assert not any(name.startswith("on") for name, _ in page.attributes)
    assert Page(render(evil)).text.count(EVIL) >= 8


def test_the_page_needs_nothing_from_elsewhere(zoo: Zoo) -> None:
    text = render(collect(zoo))
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.names)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "url(" not in text and "@import" not in text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "default-src &#x27;none&#x27;" in text


def test_measurements_pairs_and_profiles_are_shown(zoo: Zoo) -> None:
    zoo.record_loss(measurement("small", "base"))
    base, upper = (zoo.layers(name) for name in ("base", "upper"))
    pair = Pair(lens={"kl": 0.25, "cosine": 0.875}, quality={"a": {"kl": 0.5}, "b": {"kl": 0.75}})
    zoo.record_finding("equivalence", base[3].digest, upper[3].digest, pair)
    zoo.record_finding("equivalence", base[1].digest, "no layer of this zoo", pair)
    plan = plan_spans(zoo.chains().values())
    profile = some_profile(shapes_of(plan)[0])
    zoo.record_finding(KIND, profile.shape, profile.device.key, profile)
    facts = collect(zoo)
    assert [(m.number, m.rows, m.columns, m.values) for m in facts.pairs] == [
        (number, ("base 3",), ("upper 3",), ((value,),))
        for number, value in (("lens kl", 0.25), ("lens cosine", 0.875), ("quality kl", 0.75))
    ]
    assert facts.profiles == ((profile, plan.spans[0].models),)
    text = Page(render(facts)).text
    for words in ("+1.00%", "98.0% same", "equivalence, lens cosine", "error 2.0% median"):
        assert words in text, words
    assert "A processor, 2 threads, float32; torch 2" in text
    assert "not measured" not in text


def test_numbers_of_findings_are_found_wherever_they_stand() -> None:
    value: dict[str, Any] = {
        "kl": 1,
        "text": "kl",
        "weights": {"cosine": 0.5, "tensors": {"q": [1]}},
    }
    value |= {"quality": {"a": {"agreement": 0.9}, "b": {"agreement": 0.7}}, "lens": None}
    assert numbers_in(value) == {"kl": 1.0, "weights cosine": 0.5, "quality agreement": 0.7}


@pytest.mark.parametrize(
    ("kind", "format", "exact", "delta", "tier"),
    [
        ("full", "bfloat16", True, False, "exact"),
        ("dora", "bfloat16", True, True, "delta"),
        ("compressed", "bfloat16", False, True, "compressed"),
        ("stitched", "bfloat16", False, False, "stitched"),
        ("full", "int8", False, False, "rounded"),
        ("lora", "int8", False, True, "rounded"),
        ("draft", "bfloat16", False, False, "other"),
    ],
)
def test_tiers(zoo: Zoo, kind: str, format: str, exact: bool, delta: bool, tier: str) -> None:
    card = msgspec.structs.replace(zoo.card("base"), kind=kind, format=format, exact=exact)
    assert tier_of(card, delta) == tier


def test_an_empty_zoo_has_a_page(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("only", make_checkpoint(tmp_path / "only"))
    zoo.remove("only")
    assert "This zoo is empty" in Page(render(collect(zoo))).text


def test_the_command_writes_one_file(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(zoo.pack_path("ab").parents[2])
    command.report(tmp_path / "zoo.html", folder)
    command.report(tmp_path, folder)
    out = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "zoo.html"]
    assert out[0] == f"{headline(collect(zoo))}: {tmp_path / 'zoo.html'}"
    assert out[0].startswith("4 models in ") and " instead of " in out[0]
    with pytest.raises(ZooError):
        command.report(tmp_path / "absent" / "zoo.html", folder)


@given(st.text(), st.text())
def test_whatever_is_not_markup_is_escaped(text: str, attribute: str) -> None:
    page = Page(tag("p", text, tag("b", 3), title=attribute))
    assert page.names == ["p", "b"]
    assert isinstance(tag("p"), Markup)


def test_a_bar_is_as_long_as_its_parts() -> None:
    parts = [plots.BarPiece("a", 10, "own"), plots.BarPiece("b", 30, "shared")]
    page = Page(plots.bar(parts, 80, str))
    widths = [value for name, value in page.attributes if name == "width"]
    assert widths == ["12.5%", "37.5%"]
    assert [value for name, value in page.attributes if name == "x"] == ["0%", "12.5%"]


def test_a_heat_map_knows_cells_that_were_not_compared() -> None:
    plot = plots.heatmap(["r"], ["a", "b"], [[0.5, None]], str)
    page = Page(plot)
    assert "r, b: not compared" in page.text and "r, a: 0.5" in page.text
    assert ("class", "none") in page.attributes


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6))
def test_ticks_are_round_and_within(least: float, factor: float) -> None:
    found = plots.ticks(least, least * factor)
    assert found == sorted(found)
    assert all(0.79 * least <= tick <= 1.21 * least * factor for tick in found)
    assert all(f"{tick:.1e}"[:3] in "1.0 1.5 2.0 3.0 4.0 5.0 6.0 8.0" for tick in found)


def test_curves_hold_every_point() -> None:
    lines = [plots.Curve("c", "a", [(1, 0.1), (64, 3)], [(1, 0.2), (32, 1)])]
    page = Page(plots.curves(lines, "rows", "ms"))
    assert page.names.count("circle") == 2 and page.names.count("polyline") == 1
    assert "rows" in page.text and "ms" in page.text
