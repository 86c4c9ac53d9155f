"""One small adapter of every further kind that peft writes, and of the options that change what it
computes: configuration class, options, and what becomes of its linears."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

LOW_RANK, SPARSE, BIAS, MERGED = "lora", "sparse", "bias", "merged"


BASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "narrow": {"dtype": torch.bfloat16},
}


class KindCase(NamedTuple):
    """peft's configuration of an adapter; the kinds of its targets, or `MERGED`; its base."""

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
    "beft": _case("BeftConfig", BIAS, target_modules=["v_proj", "up_proj"]),
    "beft-biased": _case("BeftConfig", BIAS, "biased", target_modules=["k_proj", "down_proj"]),
    "boft": _case("BOFTConfig", MERGED, "biased", boft_block_size=4, bias="all"),
    "c3a": _case("C3AConfig", MERGED, block_size=16, modules_to_save=["lm_head", "norm"]),
    "deft": _case("DeftConfig", LOW_RANK, r=4, alpha=8),
    "deft-para": _case("DeftConfig", LOW_RANK, "biased", r=4, para=True),
    "deft-qr": _case("DeftConfig", LOW_RANK, r=4, decomposition_method="qr"),
    "delora": _case("DeloraConfig", LOW_RANK, r=4, rank_pattern={"q_proj": 3}),
    "fourierft": _case("FourierFTConfig", MERGED, n_frequency=100, scaling=900),
    "frod": _case("FrodConfig", MERGED, sparse_rate=0.1, progressbar=False),
    "glora": _case("GloraConfig", MERGED, "biased", r=3, bias="all"),
    "glora-constant": _case("GloraConfig", MERGED, config_A_B="constant"),
    "glora-vector": _case(
        "GloraConfig", MERGED, "biased", config_A_B="vector", config_C="vector", config_D_E="vector"
    ),
    "gralora": _case("GraloraConfig", LOW_RANK, r=4, hybrid_r=2, alpha=16),
    "gralora-merged": _case("GraloraConfig", MERGED, r=16, hybrid_r=2, alpha=16),
    "hira": _case("HiraConfig", MERGED, r=4, rank_pattern={"o_proj": 6}),
    "hra": _case("HRAConfig", LOW_RANK, r=4),
    "hra-narrow": _case("HRAConfig", LOW_RANK, "narrow", r=4),
    "hra-tied": _case("HRAConfig", LOW_RANK, "tied", r=2, target_modules=["lm_head", "k_proj"]),
    "hra-orthogonal": _case("HRAConfig", LOW_RANK, r=3, apply_GS=True),
    "lokr": _case("LoKrConfig", LOW_RANK, r=2, alpha=6),
    "lokr-both": _case("LoKrConfig", LOW_RANK, "biased", r=2, alpha=6, decompose_both=True),
    "lokr-merged": _case("LoKrConfig", MERGED, r=16, alpha=20, decompose_factor=4),
    "miss": _case("MissConfig", LOW_RANK, r=5),
    "miss-bat": _case("MissConfig", MERGED, "biased", r=8, init_weights="bat"),
    "miss-mini": _case("MissConfig", LOW_RANK, r=8, init_weights="mini", mini_r=4),
    "oft": _case("OFTConfig", MERGED, oft_block_size=8),
    "oft-narrow": _case("OFTConfig", MERGED, "narrow", oft_block_size=8),
    "oft-tied": _case("OFTConfig", MERGED, "tied", oft_block_size=8, target_modules=["lm_head"]),
    "oft-cayley": _case("OFTConfig", MERGED, oft_block_size=16, use_cayley_neumann=False),
    "oft-constrained": _case("OFTConfig", MERGED, "biased", oft_block_size=8, coft=True, eps=0.3),
    "oft-shared": _case(
        "OFTConfig", MERGED, oft_block_size=8, block_share=True, num_cayley_neumann_terms=3
    ),
    "osf": _case("OSFConfig", MERGED, effective_rank=20),
    "peanut": _case("PeanutConfig", LOW_RANK, r=4, depth=2),
    "peanut-flat": _case("PeanutConfig", LOW_RANK, r=4, act_fn="silu", scaling=-3.0),
    "pvera-drawn": _case("PveraConfig", LOW_RANK, r=6, save_projection=False),
    "pvera": _case("PveraConfig", LOW_RANK, r=6),
    "randlora": _case("RandLoraConfig", MERGED, "biased", r=5, randlora_alpha=1),
    "road": _case("RoadConfig", MERGED, "biased", group_size=16),
    "road-2": _case("RoadConfig", MERGED, group_size=8, variant="road_2"),
    "road-4": _case("RoadConfig", MERGED, "biased", group_size=16, variant="road_4"),
    "shira": _case("ShiraConfig", SPARSE, r=4),
    "supertuning": _case("SupertuningConfig", SPARSE, sparsity=0.9),
    "supertuning-lora": _case(
        "SupertuningConfig", f"{LOW_RANK} {SPARSE}", "biased", sparsity=0.9, r=3, lora_alpha=6
    ),
    "tinylora": _case("TinyLoraConfig", LOW_RANK, r=2, u=4),
    "tinylora-tied": _case("TinyLoraConfig", LOW_RANK, "biased", r=2, u=4, weight_tying=0.7),
    "unilora": _case("UniLoraConfig", LOW_RANK, r=8, theta_d_length=8, save_indices=True),
    "unilora-drawn": _case(
        "UniLoraConfig",
        LOW_RANK,
        r=3,
        theta_d_length=13,
        proj_seed=3,
        layers_to_transform=[0],
        modules_to_save=["mlp"],
        target_modules=["v_proj", "down_proj", "q_proj"],
    ),
    "unilora-head": _case(
        "UniLoraConfig", LOW_RANK, r=8, theta_d_length=8, target_modules=["lm_head", "k_proj"]
    ),
    "vblora": _case("VBLoRAConfig", LOW_RANK, r=4, num_vectors=20, vector_length=16),
    "vblora-short": _case(
        "VBLoRAConfig",
        LOW_RANK,
        r=4,
        num_vectors=20,
        vector_length=16,
        topk=3,
        save_only_topk_weights=True,
    ),
    "vera": _case("VeraConfig", LOW_RANK, r=8),
    "vera-drawn": _case("VeraConfig", LOW_RANK, r=8, save_projection=False, projection_prng_key=5),
    "vera-merged": _case("VeraConfig", MERGED, "biased", r=24),
    "waveft": _case("WaveFTConfig", SPARSE, n_frequency=50, scaling=3),
    "waveft-flat": _case("WaveFTConfig", SPARSE, n_frequency=200, scaling=3, use_idwt=False),
}
