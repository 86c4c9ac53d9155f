"""One small adapter of every further kind that peft writes, and of the options that change what it
computes: configuration class, options, and what becomes of its linears."""

from __future__ import annotations

from typing import Any, NamedTuple

LOW_RANK, MERGED = "lora", "merged"


class KindCase(NamedTuple):
    """peft's configuration of an adapter; the targets it becomes, or `MERGED`; its base."""

    config: str
    options: dict[str, Any]
    becomes: str
    base: str = "plain"


_LINEARS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


def _case(config: str, becomes: str, base: str = "plain", **options: Any) -> KindCase:
    return KindCase(config, {"target_modules": _LINEARS, **options}, becomes, base)


KIND_CASES: dict[str, KindCase] = {
    "adalora": _case("AdaLoraConfig", LOW_RANK, init_r=4, lora_alpha=16, total_step=9),
    "loha": _case("LoHaConfig", LOW_RANK, r=3, alpha=20, alpha_pattern={"q_proj": 30}),
    "loha-merged": _case("LoHaConfig", MERGED, r=7, rank_pattern={"v_proj": 8}, alpha=9),
    "loha-head": _case("LoHaConfig", MERGED, r=8, alpha=50, target_modules=["lm_head"]),
    "lokr": _case("LoKrConfig", LOW_RANK, r=2, alpha=6),
    "lokr-both": _case("LoKrConfig", LOW_RANK, "biased", r=2, alpha=6, decompose_both=True),
    "lokr-merged": _case("LoKrConfig", MERGED, r=16, alpha=20, decompose_factor=4),
    "pvera": _case("PveraConfig", LOW_RANK, r=6),
    "randlora": _case("RandLoraConfig", MERGED, "biased", r=5, randlora_alpha=1),
    "vera": _case("VeraConfig", LOW_RANK, r=8),
}
