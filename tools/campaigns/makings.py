"""Intact files that campaigns change: one tiny base, adapters of every kind on it, and their zoo.

Each is made when first asked for and then kept in the scratch folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockllm.zoo import Zoo

BASE = "base"
MAX_COMPUTED = 1000  # of the kinds that are computed when added; a test makes fewer


def base(scratch: Path) -> Path:
    """A llama of one layer with biases and a tokenizer."""
    from tests.makers import make_checkpoint

    folder = scratch / BASE
    if not folder.exists():
        make_checkpoint(
            folder, tokenizer=True, num_hidden_layers=1, attention_bias=True, mlp_bias=True
        )
    return folder


def zoo(scratch: Path) -> Zoo:
    """A zoo of the base and a LoRA adapter on it."""
    found = Zoo(scratch / "zoo")
    if not found.exists():
        found.add(BASE, base(scratch))
        found.add("lora", adapter(scratch, "lora"), base=BASE)
    return found


def adapter(scratch: Path, kind: str) -> Path:
    """An intact adapter of a kind."""
    folder = scratch / f"adapter-{kind}"
    if not folder.exists():
        kinds()[kind](base(scratch), folder)
    return folder


def kinds() -> dict[str, Callable[[Path, Path], Path]]:
    """Makers of adapters by kind; each takes the base and the folder to make."""
    from tests import makers
    from tests.oracle.kind_cases import KIND_CASES

    def peft_kind(config: str, options: dict[str, Any]) -> Callable[[Path, Path], Path]:
        def make(base: Path, path: Path) -> Path:
            import peft

            given = {"task_type": "CAUSAL_LM", **options}
            return makers.make_adapter(base, path, getattr(peft, config)(**given))

        return make

    computed = {
        name: peft_kind(case.config, case.options)
        for name, case in KIND_CASES.items()
        if case.base == "plain"
    }
    computed = dict(list(computed.items())[:MAX_COMPUTED])
    return {
        "lora": lambda base, path: makers.make_lora(base, path, bias="all"),
        "dora": lambda base, path: makers.make_lora(base, path, use_dora=True),
        "bitfit": lambda base, path: makers.make_bitfit(base, path, ["q_proj"]),
        "bottleneck": lambda base, path: makers.make_bottleneck(base, path, makers.HOULSBY),
        "ia3": peft_kind(
            "IA3Config",
            {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        ),
        "norms": peft_kind("LNTuningConfig", {"target_modules": ["norm"]}),
        "prefix": peft_kind("PrefixTuningConfig", {"num_virtual_tokens": 3}),
        "prompt": peft_kind("PromptTuningConfig", {"num_virtual_tokens": 3}),
        "tokens": peft_kind(
            "LoraConfig",
            {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
        ),
        **computed,
    }


def document(path: Path) -> Any:
    """The JSON in a file."""
    return json.loads(path.read_text(encoding="utf-8"))
