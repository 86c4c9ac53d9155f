"""The family's delta of each kind, through our readers and engine: better than what it stands on,
and exactly what PEFT, or plain PyTorch, makes of the same files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from blockllm.cli.main import app
from blockllm.engine.score import Scorer
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from tests.driver import settings
from tests.oracle.reference import load
from tools.demo import FAMILY, MODELS

FOLDER = FAMILY / "deltas"
WRITTEN = json.loads((FOLDER / "perplexity.json").read_text(encoding="utf-8"))
DELTAS = WRITTEN["deltas"]
KINDS = {
    "rslora": "lora", "dora": "dora", "ia3": "ia3", "bitfit": "bitfit", "ln": "ln",
    "prefix": "prefix", "prompt": "prompt", "p-tuning": "prompt", "houlsby": "bottleneck",
    "pfeiffer": "bottleneck", "lora-saved": "lora", "lora-on-full": "lora",
    "lora-on-lora": "stack",
}  # fmt: skip
FAMILY_SCORES = json.loads((FAMILY / "perplexity.json").read_text(encoding="utf-8"))["perplexity"]


class Lab:
    """Everything in one zoo, loaded once for scoring."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.zoo = folder, Zoo(folder)
        for name, base in MODELS.items():
            self.zoo.add(name, FAMILY / name, base=base)
        for name, row in DELTAS.items():
            self.zoo.add(name, FOLDER / name, base=row["parent"])
        self.scorer = Scorer(self.zoo, [*MODELS, *DELTAS], settings(memory="256MiB"))
        self._seen: dict[tuple[str, str], float] = {}

    def text(self, domain: str) -> list[list[int]]:
        """Whole windows of a domain's held-out text."""
        text, size = (FAMILY / "heldout" / f"{domain}.txt").read_bytes(), WRITTEN["window"]
        return [w for w in windows(self.zoo, ["base"], text, size) if len(w) == size]

    def perplexity(self, model: str, domain: str) -> float:
        """Of a model over them."""
        if (model, domain) not in self._seen:
            scores = [self.scorer.score(model, piece) for piece in self.text(domain)]
            mean = sum(float(s.sum(dtype="float64")) for s in scores) / sum(map(len, scores))
            self._seen[model, domain] = math.exp(-mean)
        return self._seen[model, domain]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("deltas") / "zoo")


def test_every_kind_is_there(lab: Lab) -> None:
    assert {card.name: card.kind for card in lab.zoo.cards() if card.name in DELTAS} == KINDS


@pytest.mark.slow
@pytest.mark.parametrize("name", DELTAS)
def test_a_delta_beats_its_base_on_its_domain(lab: Lab, name: str) -> None:
    """Through the engine; it must also find what training measured in PyTorch."""
    row = DELTAS[name]
    ours = lab.perplexity(name, row["domain"])
    # what the family measured, which tests/demo/test_family.py finds again
    assert ours < FAMILY_SCORES["base"][row["domain"]]
    assert ours < FAMILY_SCORES[row["parent"]][row["domain"]]
    assert ours == pytest.approx(row["perplexity"][name], rel=1e-3)


@pytest.mark.parametrize("name", DELTAS)
@torch.inference_mode()
def test_a_delta_is_what_the_reference_makes_of_it(lab: Lab, name: str) -> None:
    """Log-probabilities of every next token of a window."""
    row = DELTAS[name]
    piece = lab.text(row["domain"])[0][:160]
    ours = torch.cat(list(lab.scorer.distributions(name, piece)))
    parent = row["parent"]
    adapters = [FOLDER / name] if MODELS[parent] is None else [FAMILY / parent, FOLDER / name]
    model = load(FAMILY / (MODELS[parent] or parent), *adapters)
    logits = model(input_ids=torch.tensor([piece])).logits[0, -len(piece) :]
    theirs = logits.log_softmax(-1)
    assert (ours - theirs).abs().max() < 2e-3
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_zoo_measure_says_what_a_delta_gains(lab: Lab, tmp_path: Path) -> None:
    """The command that a user would ask."""
    text = (FAMILY / "heldout" / f"{DELTAS['ia3']['domain']}.txt").read_text(encoding="utf-8")
    (tmp_path / "text").write_text(text[:8000], encoding="utf-8")
    command = ["zoo", "measure", "ia3", "--zoo", str(lab.folder), "--against", "base", "--json"]
    result = CliRunner().invoke(app, [*command, "--text", str(tmp_path / "text")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["rise"] < -0.02


def test_the_files_are_small_and_name_no_machine() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    names = {"adapter_config.json", "adapter_model.safetensors", "adapter.safetensors"}
    assert {path.name for path in files} == names | {"perplexity.json"}
    for path in FOLDER.glob("*/adapter_config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path") or config["model_name"]
        assert base == DELTAS[path.parent.name]["parent"]
        assert "/" not in path.read_text(encoding="utf-8")
