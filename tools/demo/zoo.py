"""Builds the zoo that the demonstration serves."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from blockllm.zoo import Zoo
from tools.demo import FAMILY, MODELS
from tools.demo.tables import zoo_table


def build_zoo(folder: Path) -> None:
    """Add every member of the family, from scratch, and show what each one stored."""
    shutil.rmtree(folder, ignore_errors=True)
    zoo = Zoo(folder)
    reports = [zoo.add(name, FAMILY / name, base=base) for name, base in MODELS.items()]
    cards = {card.name: card for card in zoo.cards()}
    Console().print(zoo_table([(report, cards[report.name]) for report in reports]))
