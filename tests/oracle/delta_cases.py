"""One model of every delta kind on small bases, and what the reference says about each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blockllm.zoo import Zoo
from tests.makers import (
    HOULSBY,
    PFEIFFER,
    make_adapter,
    make_bitfit,
    make_bottleneck,
    make_checkpoint,
    make_lora,
    resize_vocabulary,
)
from tests.oracle.kept import expected
from tests.oracle.reference import Expected

Maker = Callable[[Path, Path], Path]  # (checkpoint of the base, folder to make) → the folder


class Case(NamedTuple):
    """An adapter: how its folder is made, which model it is added to, and the kind listed."""

    make: Maker
    kind: str
    base: str = "base"
    scale: float | None = None


def _peft(kind: str, seed: int = 1, **options: Any) -> Maker:
    def make(base: Path, path: Path) -> Path:
        import peft

        config = getattr(peft, kind)(task_type="CAUSAL_LM", **options)
        return make_adapter(base, path, config, seed=seed)

    return make


def _lora(seed: int = 1, **options: Any) -> Maker:
    return lambda base, path: make_lora(base, path, seed=seed, **options)


def _bitfit(*modules: str) -> Maker:
    return lambda base, path: make_bitfit(base, path, modules)


def _bottleneck(options: dict[str, Any]) -> Maker:
    return lambda base, path: make_bottleneck(base, path, options)


def _resized(vocab_size: int, kind: str, seed: int, **options: Any) -> Maker:
    """An adapter of a model with another vocabulary, to be added to the base as it was."""

    def make(base: Path, path: Path) -> Path:
        import peft

        config = getattr(peft, kind)(task_type="CAUSAL_LM", **options)
        resized = resize_vocabulary(base, _resized_base(path), vocab_size)
        return make_adapter(resized, path, config, seed=seed, recorded=base)

    return make


def _resized_base(adapter: Path) -> Path:
    return adapter.with_name(f"{adapter.name}-base")


_IA3 = {
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
_IA3_ALL = ["q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
_NORMS = ["input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"]

ENDS = ["embed_tokens", "lm_head"]

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("llama", {"num_hidden_layers": 3}),
    "biased": ("llama", {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True}),
    "normed": ("qwen3", {"num_hidden_layers": 2, "head_dim": 16}),
    "tied": ("llama", {"num_hidden_layers": 2, "tie_word_embeddings": True}),
}

CASES: dict[str, Case] = {
    "rslora": Case(_lora(2, use_rslora=True, r=5, target_modules="all-linear"), "lora"),
    "dora": Case(_lora(3, use_dora=True, target_modules="all-linear"), "dora"),
    "dora-head": Case(_lora(4, use_dora=True, target_modules=["lm_head", "o_proj"]), "dora"),
    "dora-biases": Case(
        _lora(5, use_dora=True, bias="all", target_modules=["q_proj", "down_proj"]),
        "dora",
        "biased",
    ),
    "lora-biases": Case(_lora(6, bias="all", target_modules=["v_proj"]), "lora", "biased"),
    "lora-norms": Case(_lora(7, modules_to_save=["input_layernorm", "norm"]), "lora"),
    "lora-saved": Case(_lora(8, modules_to_save=["mlp", "lm_head"]), "lora"),
    "ia3": Case(_peft("IA3Config", 9, **_IA3), "ia3"),
    "ia3-all": Case(
        _peft("IA3Config", 10, target_modules=_IA3_ALL, feedforward_modules=["o_proj"]),
        "ia3",
        "biased",
    ),
    "ln": Case(_peft("LNTuningConfig", 11, target_modules=_NORMS), "ln"),
    "ln-heads": Case(_peft("LNTuningConfig", 12, target_modules=_NORMS), "ln", "normed"),
    "bitfit": Case(_bitfit("q_proj", "v_proj", "up_proj", "down_proj", "lm_head"), "bitfit"),
    "bitfit-biased": Case(_bitfit("q_proj", "o_proj", "gate_proj"), "bitfit", "biased"),
    "houlsby": Case(_bottleneck({**HOULSBY, "scaling": 1.5}), "bottleneck"),
    "pfeiffer": Case(_bottleneck({**PFEIFFER, "leave_out": [1]}), "bottleneck"),
    "bottleneck-sizes": Case(
        _bottleneck(
            {**HOULSBY, "non_linearity": "gelu_new", "reduction_factor": {"0": 2, "default": 8}}
        ),
        "bottleneck",
        "normed",
    ),
    "prefix": Case(_peft("PrefixTuningConfig", 13, num_virtual_tokens=5), "prefix"),
    "prefix-projected": Case(
        _peft(
            "PrefixTuningConfig",
            14,
            num_virtual_tokens=19,
            prefix_projection=True,
            encoder_hidden_size=8,
        ),
        "prefix",
    ),
    "cartridge": Case(
        _peft("CartridgeConfig", 22, num_virtual_tokens=5, num_frozen_tokens=2), "prefix"
    ),
    "cpt": Case(
        _peft(
            "CPTConfig",
            23,
            cpt_token_ids=[5, 6, 7],
            cpt_mask=[1, 1, 1],
            cpt_tokens_type_mask=[1, 2, 3],
        ),
        "prompt",
    ),
    "prompt": Case(_peft("PromptTuningConfig", 15, num_virtual_tokens=6), "prompt"),
    "p-tuning": Case(
        _peft("PromptEncoderConfig", 16, num_virtual_tokens=17, encoder_hidden_size=8), "prompt"
    ),
    "tokens": Case(_lora(21, trainable_token_indices=[90, 5, 31]), "lora"),
    "tokens-alone": Case(
        _peft("TrainableTokensConfig", 22, token_indices=[17, 3]), "tokens", "tied"
    ),
    "tokens-apart": Case(
        _lora(23, trainable_token_indices={"embed_tokens": [17, 65], "lm_head": [40]}),
        "lora",
        "tied",
    ),
    "tokens-under-lora": Case(
        _lora(24, trainable_token_indices=[17, 40], target_modules=["q_proj", "lm_head"]),
        "lora",
        "tied",
    ),
    "resized": Case(
        _resized(103, "LoraConfig", 25, target_modules=["q_proj"], modules_to_save=ENDS), "lora"
    ),
    "resized-tokens": Case(
        _resized(98, "LoraConfig", 26, trainable_token_indices=[96, 97], target_modules=["v_proj"]),
        "lora",
        "tied",
    ),
    "resized-prompt": Case(
        _resized(104, "PromptTuningConfig", 28, num_virtual_tokens=3), "prompt", "tied"
    ),
    "replicated": Case(_lora(27, layer_replication=[[0, 2], [1, 3]]), "lora"),
    "lora-on-tuned": Case(_lora(17, r=3), "lora", "tuned"),
    "stack": Case(_lora(18, r=3, target_modules=["q_proj", "up_proj"]), "stack", "rslora"),
    "stack-scaled": Case(_lora(19, target_modules=["v_proj", "q_proj"]), "stack", "rslora", 0.5),
    "stack-kinds": Case(_lora(20, target_modules=["down_proj"]), "stack", "bitfit"),
}
PROMPT = 24
TOKENS = 48


def prompt_of(seed: int) -> list[int]:
    """A prompt whose first 16 tokens do not depend on the seed."""
    return [(max(0, i - 15) * seed * 29 + i * i * 31 + i * 17) % 96 for i in range(PROMPT)]


class DeltaLab:
    """Every case in one zoo."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zoo = Zoo(root / "zoo")
        self._expected: dict[tuple[str, int], Expected] = {}
        for seed, (name, (family, config)) in enumerate(BASES.items()):
            path = make_checkpoint(root / name, family, seed=70 + seed, **config)
            self.zoo.add(name, path)
        tuned = make_checkpoint(
            root / "tuned", seed=80, copy_layers_from=root / "base", copied_layers=(0,),
            **BASES["base"][1],
        )  # fmt: skip
        self.zoo.add("tuned", tuned)
        for name, case in CASES.items():
            case.make(self._checkpoint(name), root / name)
            self.zoo.add(name, root / name, base=case.base, scale=case.scale)

    def _checkpoint(self, model: str) -> Path:
        while model in CASES:
            model = CASES[model].base
        return self.root / model

    def _adapters(self, model: str) -> list[Path]:
        return [*self._adapters(CASES[model].base), self.root / model] if model in CASES else []

    def expected(self, model: str, seed: int) -> Expected:
        """Greedy tokens of the reference."""
        if (model, seed) not in self._expected:
            checkpoint = _resized_base(self.root / model)
            if not checkpoint.exists():
                checkpoint = self._checkpoint(model)
            scale = CASES[model].scale if model in CASES else None
            self._expected[model, seed] = expected(
                checkpoint, self._adapters(model), prompt_of(seed), TOKENS, scale
            )
        return self._expected[model, seed]
