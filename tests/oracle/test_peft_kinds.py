"""Every further kind of peft answers as peft does, all of them in one batch beside their bases."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings
from tests.makers import make_adapter, make_checkpoint
from tests.oracle.conftest import Report
from tests.oracle.delta_cases import prompt_of
from tests.oracle.kind_cases import BASES, KIND_CASES, MERGED
from tests.oracle.reference import Expected, generate, load

TOKENS = 12
TOLERANCE = 1e-3  # of log-probabilities


class Lab:
    """Every case in one zoo."""

    def __init__(self, root: Path) -> None:
        self.root, self.zoo = root, Zoo(root / "zoo")
        for seed, (name, options) in enumerate(BASES.items()):
            path = make_checkpoint(root / name, seed=90 + seed, num_hidden_layers=2, **options)
            self.zoo.add(name, path)
        for seed, (name, case) in enumerate(KIND_CASES.items()):
            import peft

            config = getattr(peft, case.config)(task_type="CAUSAL_LM", **case.options)
            make_adapter(root / case.base, root / name, config, seed=seed)
            self.zoo.add(name, root / name, base=case.base)

    def expected(self, name: str, tokens: int = TOKENS) -> Expected:
        """What the reference generates."""
        if name in BASES:
            return generate(load(self.root / name), prompt_of(0), tokens)
        case = KIND_CASES[name]
        return generate(load(self.root / case.base, self.root / name), prompt_of(0), tokens)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def answers(lab: Lab) -> dict[str, Answer]:
    """All models in one batch."""
    models = [*BASES, *KIND_CASES]
    engine = Engine(lab.zoo, None, settings(max_sequences=len(models), memory="512MiB"))
    return run(engine, [request(m, m, prompt_of(0), greedy(TOKENS, logprobs=5)) for m in models])


@pytest.mark.parametrize("name", KIND_CASES)
def test_answers_as_peft_does(
    lab: Lab, answers: dict[str, Answer], report: Report, name: str
) -> None:
    expected, answer = lab.expected(name), answers[name]
    assert answer.tokens == expected.tokens
    worst = max(
        abs(float(row[token]) - value)
        for row, logprobs in zip(expected.logprobs, answer.logprobs, strict=True)
        for token, value in logprobs.top
    )
    assert worst < TOLERANCE
    report.note(name, "mixed batch", f"{worst:.0e}")
    bare = answers[KIND_CASES[name].base].logprobs[0]
    difference = max(abs(float(expected.logprobs[0][token]) - value) for token, value in bare.top)
    assert difference > 0.01  # it changes the answer


@pytest.mark.parametrize("name", KIND_CASES)
def test_becomes_what_the_table_says(lab: Lab, name: str) -> None:
    case, card = KIND_CASES[name], lab.zoo.card(name)
    is_whole = case.becomes == MERGED
    expected = set() if is_whole else set(case.becomes.split())
    assert (card.kind, card.exact) == (name.partition("-")[0], True)
    targets = lab.zoo.targets(name).values()
    tags = {t.__struct_config__.tag for modules in targets for g in modules.values() for t in g}
    layers = zip(lab.zoo.layers(name), lab.zoo.layers(case.base), strict=True)
    assert tags == expected
    assert any(own != base for own, base in layers) == (
        is_whole or "modules_to_save" in case.options
    )


def test_the_zoo_is_sound(lab: Lab) -> None:
    assert lab.zoo.verify().is_sound
