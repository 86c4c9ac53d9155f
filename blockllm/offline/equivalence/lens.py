"""The logit lens: what a layer's output says when its own model's norm and head read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import Chain, HeadFunction, LayerFunction
from blockllm.engine.score import Scorer
from blockllm.offline.equivalence.candidates import Models
from blockllm.offline.equivalence.evidence import Lens, Site, Swap
from blockllm.offline.equivalence.oracle import Text
from blockllm.offline.equivalence.variants import Variants, chain_of
from blockllm.zoo import Zoo
from blockllm.zoo.reports import Progress, silent


def lenses(
    zoo: Zoo,
    models: Models,
    swaps: Sequence[Swap],
    texts: dict[str, Text],
    progress: Progress = silent,
) -> dict[Swap, Lens]:
    """The lens of every swap of decoder layers whose models have one vocabulary, on the text of
    the model that would change. Hidden sizes may differ. Weights of two models are loaded at once.
    """
    chosen = [swap for swap in swaps if _can_be_read(models, swap)]
    groups: dict[tuple[str, str], list[Swap]] = {}
    for swap in chosen:
        groups.setdefault((swap.old_site.model, swap.new_site.model), []).append(swap)
    likes = zoo.chains(models)
    found: dict[Swap, Lens] = {}
    for (old_model, _), group in groups.items():
        sites = {site for swap in group for site in (swap.old_site, swap.new_site)}
        chains = [_cut(models, site, likes[site.model]) for site in sorted(sites, key=str)]
        scorer = Scorer(Variants(zoo, chains), [chain.model for chain in chains])
        for swap in group:
            names = str(swap.old_site), str(swap.new_site)
            found[swap] = _compare(scorer, *names, texts[old_model])
            progress("what layers say", len(found), len(chosen))
    return found


def _can_be_read(models: Models, swap: Swap) -> bool:
    sites = swap.old_site, swap.new_site
    functions = [models[site.model][site.position].function for site in sites]
    heads = [models[site.model][-1].function for site in sites]
    sizes = {head.vocab_size for head in heads if isinstance(head, HeadFunction)}
    return len(sizes) == 1 and all(isinstance(f, LayerFunction) for f in functions)


def _cut(models: Models, site: Site, like: Chain) -> Chain:
    """The model up to the layer, and its head right behind."""
    layers = models[site.model]
    return chain_of(str(site), [*layers[: site.position + 1], layers[-1]], like)


def _compare(scorer: Scorer, old_name: str, new_name: str, text: Text) -> Lens:
    sums = torch.zeros(3, dtype=torch.float64)
    count = 0
    for window in text:
        pieces = (scorer.distributions(name, window[:-1]) for name in (old_name, new_name))
        for old, new in zip(*pieces, strict=True):  # [positions, vocab] log-probabilities
            cosine = torch.cosine_similarity(old.exp(), new.exp(), dim=-1)
            kl = (old.exp() * (old - new)).sum(-1)
            same = old.argmax(-1) == new.argmax(-1)
            sums += torch.stack([x.sum(dtype=torch.float64) for x in (cosine, kl, same)])
            count += len(old)
    return Lens(*(sums / count).tolist())
