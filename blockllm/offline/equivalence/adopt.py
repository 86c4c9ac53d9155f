"""A plan made real: models of the zoo with their layers exchanged, measured as they are served."""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.core import Measurement
from blockllm.engine.score import Scorer
from blockllm.errors import NameTaken, ZooError
from blockllm.offline.equivalence.candidates import by_digest, exchanged
from blockllm.offline.equivalence.evidence import SwapPlan
from blockllm.offline.equivalence.find import Limits, probe
from blockllm.offline.loss import measure_loss
from blockllm.zoo import Zoo


def check_free(zoo: Zoo, names: Sequence[str], name: str) -> None:
    """Refuse a name that `adopt` could not give. Raises NameTaken."""
    taken = {card.name for card in zoo.cards()}
    for wanted in (name, *(f"{name}-{model}" for model in names)):
        if wanted in taken:
            raise NameTaken(f"the zoo has a model named {wanted!r} already")


def adopt(
    zoo: Zoo,
    names: Sequence[str],
    plan: SwapPlan,
    name: str,
    texts: dict[str, bytes],
    limits: Limits,
) -> list[Measurement]:
    """Add each model that the plan changes once more, with its layers exchanged: as `name`, or
    `name`-MODEL where it changes several. Its loss by all swaps together is in the catalogue when
    this returns. Raises ZooError if the plan changes nothing, NameTaken.
    """
    models = {model: zoo.layers(model) for model in names}
    if not plan.quality:
        raise ZooError("no layer is equivalent within the budget: nothing to assemble")
    made = []
    for model in plan.quality:
        new = name if len(plan.quality) == 1 else f"{name}-{model}"
        layers = exchanged(models[model], plan.mapping, by_digest(models))
        root = f"{model} with equivalent layers"
        zoo.assemble(new, model, layers, kind="equivalent", root=root)
        windows = probe(zoo, names, texts[model], limits)
        scorer = Scorer(zoo, [new, model])
        measurement = measure_loss(scorer, new, model, windows, limits.window, texts[model])
        zoo.record_loss(measurement)
        made.append(measurement)
    return made
