"""From models and texts to the swaps that save the most: measure all pairs, then search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from blake3 import blake3

from blockllm.errors import ZooError
from blockllm.offline.equivalence.candidates import Models, by_digest, candidates, fits, num_bytes
from blockllm.offline.equivalence.evidence import (
    Budget,
    Edge,
    Findings,
    Lens,
    Similarity,
    Swap,
)
from blockllm.offline.equivalence.lens import lenses
from blockllm.offline.equivalence.oracle import Oracle, Text
from blockllm.offline.equivalence.ranks import predictions
from blockllm.offline.equivalence.search import search
from blockllm.offline.equivalence.weights import similarity
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from blockllm.zoo.reports import Progress, silent

KIND = "equivalence"  # of findings in the catalogue: subject replaced, object in its place


class Limits(msgspec.Struct, frozen=True):
    """What is looked at, and how closely."""

    budget: Budget
    threshold: float = 0.9  # cosine of weights (of lenses if shapes differ) below which none is run
    reach: int = 0  # positions apart
    window: int = 512  # tokens scored at a time, each window alone
    num_tokens: int = 4096  # at most, of each model's text


def find_equivalents(
    zoo: Zoo,
    names: Sequence[str],
    texts: dict[str, bytes],
    limits: Limits,
    progress: Progress = silent,
) -> Findings:
    """Measure the layers of the models against each other and plan the swaps; `texts` by model.

    Writes nothing. Raises ZooError if the models cannot be compared, and what `Scorer` raises.
    """
    models = _models(zoo, names)
    parts = {name: probe(zoo, names, texts[name], limits) for name in models}
    swaps = candidates(models, limits.reach)
    weights = _similarities(zoo, models, swaps, progress)
    near = [s for s in swaps if _is_near(weights[s], limits.threshold)]
    views = lenses(zoo, models, near, parts, progress)
    oracle = Oracle(zoo, models, parts, progress)
    tried = {
        swap
        for swap in near
        if _fits(models, swap) and (weights[swap] or _is_near(views.get(swap), limits.threshold))
    }
    oracle.measure([swap.mapping for swap in near if swap in tried])
    hashes = {name: str(blake3(texts[name]).hexdigest()) for name in models}
    edges = []
    for swap in swaps:
        quality = oracle(swap.mapping) if swap in tried else {}
        accepted = bool(quality) and limits.budget.allows(quality)
        measured = {name: hashes[name] for name in quality}
        edges.append(Edge(swap, weights[swap], views.get(swap), quality, accepted, measured))
    allowed = [edge.swap for edge in edges if edge.accepted]
    plan = search(allowed, partial(num_bytes, models), oracle, limits.budget)
    return Findings(
        models={name: len(layers) for name, layers in models.items()},
        window=limits.window,
        num_tokens={name: sum(len(part) - 1 for part in text) for name, text in parts.items()},
        budget=limits.budget,
        edges=tuple(edges),
        predictions=predictions(edges),
        plan=plan,
    )


def probe(zoo: Zoo, names: Sequence[str], text: bytes, limits: Limits) -> Text:
    """The windows of the text's beginning that are measured on. Raises ZooError for no text."""
    found = [w for w in windows(zoo, names, text, limits.window) if len(w) > 1]
    if not found:
        raise ZooError("a model's text has no two tokens to measure on")
    return found[: max(1, limits.num_tokens // limits.window)]


def record(zoo: Zoo, findings: Findings) -> int:
    """Keep every swap that was run, allowed or not, in the catalogue; returns how many pairs."""
    count = 0
    for edge in findings.edges:
        for old, new in edge.swap.mapping.items() if edge.quality else ():
            zoo.record_finding(KIND, old, new, edge)
            count += 1
    return count


def _models(zoo: Zoo, names: Sequence[str]) -> Models:
    models = {name: zoo.layers(name) for name in names}
    if len(models) < 2:
        raise ZooError("equivalents are found between two models or more")
    for name in models:
        if zoo.targets(name):
            raise ZooError(f"{name!r} is a delta on another model's layers: compare that model")
    return models


def _similarities(
    zoo: Zoo, models: Models, swaps: Sequence[Swap], progress: Progress
) -> dict[Swap, Similarity | None]:
    known = by_digest(models)
    found = {}
    for done, swap in enumerate(swaps, 1):
        sides = [[known[digest] for digest in side] for side in (swap.old, swap.new)]
        found[swap] = similarity(zoo, *sides)
        progress("weights", done, len(swaps))
    return found


def _fits(models: Models, swap: Swap) -> bool:
    known = by_digest(models)
    return all(fits(known[a].function, known[b].function) for a, b in swap.mapping.items())


def _is_near(found: Similarity | Lens | None, threshold: float) -> bool:
    """Whether a cheap measurement, if there is one, says that more of them are worth it."""
    return found is None or found.cosine >= threshold
