"""Equivalence on tiny random models: what is compared, how it is measured, what is written."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.core import Function, LayerFunction
from blockllm.engine.score import Scorer, compare
from blockllm.errors import NameTaken, ZooError
from blockllm.offline.equivalence.adopt import adopt, check_free
from blockllm.offline.equivalence.candidates import Models, candidates, num_bytes
from blockllm.offline.equivalence.evidence import Budget, Edge, Findings, Site
from blockllm.offline.equivalence.find import KIND, Limits, find_equivalents, probe, record
from blockllm.offline.equivalence.weights import similarity
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora, make_tokenizer

TEXT = b"Whoever waits at a block is batched with whoever waits there. " * 6
LIMITS = Limits(Budget(max_kl=0.05), window=48, num_tokens=144)
NAMES = ("base", "near", "other")
TEXTS = dict.fromkeys(NAMES, TEXT)


def nudge(source: Path, path: Path, scale: float) -> Path:
    """A copy of a checkpoint whose decoder layers have a little noise."""
    shutil.copytree(source, path)
    generator = torch.Generator().manual_seed(7)
    state = load_file(source / "model.safetensors")
    for name, tensor in sorted(state.items()):
        if ".layers." in name:
            tensor += scale * torch.randn(tensor.shape, generator=generator)
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """`near` is `base` with noise in its layers, `other` has another seed, all one tokenizer."""
    folder = tmp_path_factory.mktemp("equivalence")
    zoo = Zoo(folder / "zoo")
    base = make_checkpoint(folder / "base", vocab_size=259)
    make_tokenizer(base, vocab_size=259)
    other = make_checkpoint(folder / "other", seed=5, vocab_size=259)
    shutil.copy(base / "tokenizer.json", other)
    zoo.add("base", base)
    zoo.add("near", nudge(base, folder / "near", 0.002))
    zoo.add("other", other)
    wide = make_checkpoint(folder / "wide", seed=6, vocab_size=259, hidden_size=48)
    shutil.copy(base / "tokenizer.json", wide)
    zoo.add("wide", wide)
    zoo.add("adapter", make_lora(base, folder / "adapter"), base="base")
    return zoo


@pytest.fixture(scope="module")
def findings(zoo: Zoo) -> Findings:
    return find_equivalents(zoo, NAMES, TEXTS, LIMITS)


def edges_between(findings: Findings, old: str, new: str) -> list[Edge]:
    sites = [(e, e.swap.old_site.model, e.swap.new_site.model) for e in findings.edges]
    return [edge for edge, a, b in sites if (a, b) == (old, new)]


def test_near_layers_are_allowed_both_ways_and_another_seed_is_refused(findings: Findings) -> None:
    for pair in (("near", "base"), ("base", "near")):
        edges = edges_between(findings, *pair)
        assert len(edges) == 4 and all(edge.accepted for edge in edges)
    for pair in product(("base", "near"), ("other",)):
        for edge in edges_between(findings, *pair) + edges_between(findings, *pair[::-1]):
            assert not edge.accepted and not edge.quality
            assert edge.weights is not None and abs(edge.weights.cosine) < 0.6
    assert {site.model for s in findings.plan.swaps for site in (s.old_site, s.new_site)} == {
        "base",
        "near",
    }


def test_another_seed_is_refused_by_the_swap_test_too(zoo: Zoo) -> None:
    limits = Limits(Budget(max_kl=0.05), threshold=-1, window=48, num_tokens=96)
    found = find_equivalents(zoo, ("base", "other"), TEXTS, limits)
    decoders = [edge for edge in found.edges if edge.lens]
    assert len(decoders) == 8 and all(edge.quality for edge in found.edges)
    assert not any(edge.accepted for edge in found.edges)
    assert found.plan.swaps == ()
    with pytest.raises(ZooError, match="nothing to assemble"):
        adopt(zoo, ("base", "other"), found.plan, "mixed", TEXTS, limits)


def test_layers_of_another_width_are_compared_through_the_lens_only(zoo: Zoo) -> None:
    texts = {"base": TEXT, "wide": TEXT}
    found = find_equivalents(
        zoo, ("base", "wide"), texts, msgspec.structs.replace(LIMITS, threshold=-1)
    )
    decoders = [edge for edge in found.edges if edge.lens]
    assert len(decoders) == 8
    for edge in found.edges:
        assert edge.weights is None and not edge.quality and not edge.accepted
    for edge in decoders:
        assert edge.lens is not None and 0 < edge.lens.cosine < 1 and edge.lens.kl > 0


def test_the_lens_of_the_last_layer_is_the_model_itself(zoo: Zoo, findings: Findings) -> None:
    edge = next(e for e in edges_between(findings, "near", "base") if e.swap.old_site.position == 4)
    windows = [window[:-1] for window in probe(zoo, ["near"], TEXT, LIMITS)]
    scorer = Scorer(zoo, ["near", "base"])
    rows = [
        torch.cat([piece for window in windows for piece in scorer.distributions(name, window)])
        for name in ("near", "base")
    ]
    assert edge.lens is not None
    kl = (rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean()
    assert edge.lens.kl == pytest.approx(float(kl), rel=1e-4)
    cosine = torch.cosine_similarity(rows[0].exp(), rows[1].exp(), dim=-1).mean()
    assert edge.lens.cosine == pytest.approx(float(cosine), rel=1e-5)


def test_swap_test_is_what_the_zoo_would_serve(zoo: Zoo, findings: Findings) -> None:
    """One swap assembled by hand in the zoo and scored there gives the same numbers."""
    edge = edges_between(findings, "near", "base")[1]
    position = edge.swap.old_site.position
    layers = list(zoo.layers("near"))
    layers[position] = zoo.layers("base")[position]
    zoo.assemble("by-hand", "near", layers)
    windows = probe(zoo, ["near"], TEXT, LIMITS)
    served = compare(Scorer(zoo, ["by-hand", "near"]), "by-hand", "near", windows)
    zoo.remove("by-hand")
    found = edge.quality["near"]
    assert (found.kl, found.perplexity) == pytest.approx((served.kl, served.perplexity), rel=1e-5)
    assert found.num_tokens == served.num_tokens > 0


def test_plan_is_measured_together_recorded_and_assembled(zoo: Zoo, findings: Findings) -> None:
    plan = findings.plan
    assert len(plan.swaps) == 4 and LIMITS.budget.allows(plan.quality)
    models = {name: zoo.layers(name) for name in NAMES}
    assert plan.saved_bytes == num_bytes(models, {}) - num_bytes(models, plan.mapping) > 0
    record(zoo, findings)
    kept = zoo.findings(KIND, Edge)
    assert set(plan.mapping.items()) <= set(kept)
    assert all(kept[pair].accepted for pair in plan.mapping.items())
    made = adopt(zoo, NAMES, plan, "merged", TEXTS, LIMITS)
    try:
        assert {m.reference for m in made} == set(plan.quality)
        for m in made:
            card = zoo.card(m.model)
            assert (card.exact, card.loss) == (False, (m,))
            assert m.kl == pytest.approx(plan.quality[m.reference].kl, rel=1e-4)
        with pytest.raises(NameTaken):
            check_free(zoo, NAMES, "merged")
        check_free(zoo, NAMES, "merged again")
    finally:
        for m in made:
            zoo.remove(m.model)


def test_weights_against_numpy(zoo: Zoo) -> None:
    pairs = zoo.layers("base")[1], zoo.layers("near")[1]
    found = similarity(zoo, pairs[:1], pairs[1:])
    states = [load_file(source / "model.safetensors") for source in _sources(zoo)]
    old, new = (
        np.concatenate(
            [state[f"model.layers.0.{name}"].double().flatten() for name in pairs[0].tensors]
        )
        for state in states
    )
    assert found is not None
    cosine = old @ new / np.linalg.norm(old) / np.linalg.norm(new)
    assert found.cosine == pytest.approx(cosine, rel=1e-9)
    assert found.distance == pytest.approx(np.linalg.norm(old - new) / np.linalg.norm(old))
    assert found.tensors.keys() == pairs[0].tensors.keys()


def _sources(zoo: Zoo) -> list[Path]:
    return [Path(zoo.card(name).root) for name in ("base", "near")]


def test_shared_layers_are_no_pair_and_tied_ends_move_together(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    tied = {"tie_word_embeddings": True}
    base = make_checkpoint(tmp_path / "base", **tied)
    zoo.add("base", base)
    zoo.add(
        "kin",
        make_checkpoint(
            tmp_path / "kin", seed=1, copy_layers_from=base, copied_layers=(0, 1), **tied
        ),
    )
    zoo.add("other", make_checkpoint(tmp_path / "other", seed=2, **tied))
    models = {name: zoo.layers(name) for name in ("base", "kin", "other")}
    swaps = candidates(models)
    assert {len(swap.old) for swap in swaps} == {1, 2}
    sites = {(str(s.old_site), str(s.new_site)) for s in swaps}
    assert ("base.0", "other.0") in sites and ("base.5", "other.5") not in sites
    assert not sites & {("base.1", "kin.1"), ("kin.0", "base.0")}
    assert ("kin.1", "other.1") not in sites, "base has the same layer"
    ends = next(s for s in swaps if (str(s.old_site), str(s.new_site)) == ("other.0", "base.0"))
    embedding = next(iter(models["other"][0].tensors.values()))
    saved = num_bytes(models, {}) - num_bytes(models, ends.mapping)
    assert saved >= embedding.nbytes
    alone = {ends.old[0]: ends.new[0]}
    assert num_bytes(models, alone) == num_bytes(models, {})


def test_reach_compares_other_positions_but_no_layers_of_one_chain(zoo: Zoo) -> None:
    models = {name: zoo.layers(name) for name in NAMES}
    near = [s for s in candidates(models, reach=1) if s.old_site.model == "base"]
    inner = [s for s in near if isinstance(_function(models, s.old_site), LayerFunction)]
    gaps = {s.new_site.position - s.old_site.position for s in inner}
    assert gaps == {-1, 0, 1}
    assert len(inner) == 2 * (4 + 3 + 3)


def _function(models: Models, site: Site) -> Function:
    return models[site.model][site.position].function


def test_refusals(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match="two models"):
        find_equivalents(zoo, ["base"], TEXTS, LIMITS)
    with pytest.raises(ZooError, match="'adapter' is a delta"):
        find_equivalents(zoo, ["base", "adapter"], {**TEXTS, "adapter": TEXT}, LIMITS)
