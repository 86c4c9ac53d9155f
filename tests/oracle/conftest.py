"""Checkpoints, zoo and reference answers of the oracle matrix, and the report it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora
from tests.oracle.cases import CASES
from tests.oracle.kept import expected
from tests.oracle.reference import Expected

NEW_TOKENS = 256
OTHER_TOKENS = 100  # of the prompts that only keep the first one company
PROMPT = 40


def model_name(case: str) -> str:
    return case.replace(",", "").replace(" ", "-")


def prompt_of(seed: int, vocab: int = 96, length: int = PROMPT) -> list[int]:
    return [(seed * 7919 + i * i * 31 + i * 17) % vocab for i in range(length)]


class Lab:
    """All models of the matrix in one zoo, and what the reference says about them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zoo = Zoo(root / "zoo")
        self._expected: dict[tuple[str, int], Expected] = {}
        for seed, (case, (family, config)) in enumerate(CASES.items()):
            path = root / model_name(case)
            make_checkpoint(path, family, seed=seed, **config)
            self.zoo.add(model_name(case), path)
        self._add_family()

    def _add_family(self) -> None:
        """One base, full fine-tunes that keep its lower layers, adapters of several kinds."""
        base = make_checkpoint(self.root / "base", seed=50, **FAMILY)
        self.zoo.add("base", base)
        for index, kept in enumerate(((0, 1, 2), (0, 1))):
            path = self.root / f"tuned-{index}"
            make_checkpoint(
                path, seed=60 + index, copy_layers_from=base, copied_layers=kept, **FAMILY
            )
            self.zoo.add(f"tuned-{index}", path)
        for name, options in ADAPTERS.items():
            make_lora(base, self.root / name, seed=len(name), **options)
            self.zoo.add(name, self.root / name, base="base")
        make_lora(self.root / "tuned-0", self.root / "lora-on-tuned", seed=9, r=3)
        self.zoo.add("lora-on-tuned", self.root / "lora-on-tuned", base="tuned-0")

    def expected(self, model: str, seed: int = 0) -> Expected:
        """Greedy tokens of the reference for the standard prompt (0), fewer for others."""
        key = (model, seed)
        if key not in self._expected:
            base = {"lora-on-tuned": "tuned-0"}.get(model, "base" if model in ADAPTERS else None)
            path, adapters = self.root / (base or model), [self.root / model] if base else []
            tokens = OTHER_TOKENS if seed else NEW_TOKENS
            self._expected[key] = expected(path, adapters, prompt_of(seed), tokens)
        return self._expected[key]


FAMILY = {"num_hidden_layers": 4, "max_position_embeddings": 512}

ADAPTERS: dict[str, dict[str, object]] = {
    "lora-small": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "lora-all": {
        "r": 8,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": "all-linear",
    },
    "lora-ends": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    "lora-upper": {"r": 5, "layers_to_transform": [2, 3], "target_modules": ["o_proj"]},
    "lora-patterns": {
        "r": 4,
        "rank_pattern": {"k_proj": 7},
        "alpha_pattern": {"k_proj": 3},
        "target_modules": ["k_proj", "up_proj"],
    },
    "lora-saved-head": {
        "r": 4,
        "target_modules": ["gate_proj"],
        "modules_to_save": ["lm_head"],
    },
}
FAMILY_MODELS = ["base", "tuned-0", "tuned-1", *ADAPTERS, "lora-on-tuned"]
ALL_MODELS = [*map(model_name, CASES), *FAMILY_MODELS]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("oracle"))


class Report:
    """One line per model, one column per scenario; written when the session ends."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def note(self, model: str, scenario: str, cell: str) -> None:
        self.cells.setdefault(model, {})[scenario] = cell

    def text(self) -> str:
        columns = list(dict.fromkeys(s for cells in self.cells.values() for s in cells))
        lines = ["| model | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        for model, cells in self.cells.items():
            lines.append("| " + " | ".join([model, *(cells.get(c, "") for c in columns)]) + " |")
        return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    collected = Report()
    yield collected
    target = os.environ.get("ORACLE_REPORT")
    if target:
        Path(target).write_text(collected.text(), encoding="utf-8")
