"""Which options of an adapter_config.json matter: one table for all of PEFT's kinds.

Each kind names those that it reads, and those that say how it was trained. Of the others

refused   what PEFT knows, since it may change what is computed; with the reason where that helps
ignored   what PEFT does not know: it drops such options with a warning, the report of adding too
"""

from __future__ import annotations

from collections.abc import Set

from blockllm.errors import UnsupportedModel
from blockllm.zoo.settings_reader import SettingsReader

# of every kind: how it was trained or saved, not what it computes
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
}  # fmt: skip
# options of kinds that are read otherwise; why, and what to do
_REFUSED = {
    "alora_invocation_tokens": (
        "aLoRA changes the tokens from its invocation sequence on and no others, while a model's "
        "delta here changes all of its tokens; it cannot be merged either: train it without"
    ),
    "arrow_config": "it mixes several adapters anew for each token; add each as a model of its own",
    "enable_lora": (
        "only parts of a fused linear have updates; load the adapter with the peft that made it, "
        "merge it and add the result as a model"
    ),
    "kasa_config": (
        "the adapter belongs to a base without its smallest singular values; merge the two "
        "(merge_and_unload) and add the result as a model"
    ),
    "use_bdlora": (
        "its factors are block-diagonal; merge it (merge_and_unload) and add the result as a model"
    ),
    "use_qalora": (
        "the adapter belongs to a base quantised by GPTQ and reads means of several inputs; merge "
        "the two and add the result as a model, in 16 bits"
    ),
}
# all other options that some kind of PEFT has, as of 0.21
_KNOWN = frozenset(
    {
        "ab_svd_init", "act_fn", "adapter_layers", "adapter_len", "adapters", "alpha",
        "alpha_pattern", "apply_GS", "asa_importance_beta", "asa_schedule_exponent",
        "asa_target_subspaces", "asa_uncertainty_beta", "auxiliary_loss_weight", "beta1", "beta2",
        "bias", "block_share", "block_size", "block_size_pattern", "boft_block_num",
        "boft_block_size", "boft_dropout", "boft_n_butterfly_factor", "cayley_neumann_eps",
        "coft", "config_A_B", "config_C", "config_D_E", "corda_config", "cpt_mask",
        "cpt_token_ids", "cpt_tokens_type_mask", "d_initial", "decompose_both",
        "decompose_factor", "decomposition_method", "deft_dropout", "delora_lambda", "deltaT",
        "depth", "effective_rank", "enable_softmax", "enable_softmax_topk", "encoder_dropout",
        "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type",
        "ensure_weight_tying", "eps", "eva_config", "exclude_modules", "fan_in_fan_out",
        "feedforward_modules", "final_warmup", "frod_dropout", "generator_seed",
        "global_scaling_weight", "gralora_dropout", "gralora_k", "group_size", "hidden_size",
        "hira_dropout", "hybrid_r", "init_ia3_weights", "init_logits_std", "init_lora_weights",
        "init_r", "init_scale", "init_theta_d_bound", "init_v_bound", "init_vector_bank_bound",
        "init_warmup", "init_weights", "lambda_pattern", "layer_replication", "layers_pattern",
        "layers_to_transform", "layerwise_scalings", "loftq_config", "lora_alpha", "lora_bias",
        "lora_dropout", "lora_ga_config", "mask_interval", "mask_type", "megatron_config",
        "megatron_core", "mini_r", "miss_dropout", "module_dropout", "modules_to_save",
        "monteclora_config", "n_frequency", "n_frequency_pattern", "n_skills", "n_splits",
        "n_tasks", "num_B", "num_attention_heads", "num_cayley_neumann_terms",
        "num_frozen_tokens", "num_layers", "num_ranks", "num_subspaces", "num_tasks",
        "num_transformer_submodules", "num_vectors", "num_virtual_tokens", "oft_block_size",
        "opt_loss_decay_factor", "opt_projection_epsilon", "opt_projection_format_epsilon",
        "opt_weighted_loss_type", "orth_reg_weight", "para", "poly_type", "prefix_projection",
        "progressbar", "proj_seed", "projection_prng_key", "projection_seed",
        "prompt_tuning_init", "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task",
        "prompt_tuning_init_text", "proportional_parameters", "psoft_alpha", "psoft_dropout",
        "psoft_mag_a", "psoft_mag_b", "psoft_orth", "psoft_svd", "psoft_svd_lowrank_niter",
        "pvera_dropout", "qalora_group_size", "r", "randlora_alpha", "randlora_dropout",
        "random_loc_seed", "random_seed", "rank_dropout", "rank_dropout_scale", "rank_pattern",
        "regularization_alpha", "runtime_config", "runtime_offload_base_weight",
        "sample_at_inference", "save_indices", "save_only_topk_weights",
        "save_precomputed_indices", "save_projection", "scaling", "scaling_pass_value",
        "select_top", "shadow_alpha", "shadow_dropout", "shadow_hidden_size",
        "shadow_intermediate_size", "shadow_model", "shadow_num_attention_heads",
        "shadow_num_hidden_layers", "share_embeddings", "softmax_temperature", "sparse",
        "sparse_rate", "sparsity", "stride_A", "subspace_rank", "svd_threshold", "target_modules",
        "target_parameters", "target_r", "target_svd_config", "tfinal", "theta_d_length", "tinit",
        "tinylora_dropout", "token_dim", "token_indices", "tokenizer_kwargs",
        "tokenizer_name_or_path", "top_k_lora", "topk", "total_step", "trainable_token_indices",
        "u", "unilora_dropout", "update_hidden_size", "use_asa", "use_cayley_neumann", "use_dora",
        "use_dynamic_rank", "use_effective_conv2d", "use_idwt", "use_rslora",
        "use_trainable_adapters", "variant", "vblora_dropout", "vector_length", "velora_config",
        "vera_dropout", "very_sparse", "wavelet_family", "weight_tying", "xlora_depth",
        "xlora_dropout_p", "xlora_size",
    }
)  # fmt: skip


def check_options(reader: SettingsReader, known: Set[str]) -> None:
    """Raise UnsupportedModel for an option that is set, is none of the `known` and may mean
    something to PEFT."""
    for name in sorted(set(reader.truthy_keys()) - known - _HARMLESS):
        reason = _REFUSED.get(name)
        if reason is not None:
            raise UnsupportedModel(f"{reader.where}: {name} is not supported: {reason}")
        if name in _KNOWN:
            kind = reader.text("peft_type", "")[:40]
            raise UnsupportedModel(
                f"{reader.where}: the option {name!r} is not supported for {kind} adapters; merge "
                "the adapter and add the result as a model"
            )


def ignored_note(reader: SettingsReader) -> tuple[str, ...]:
    """A sentence about the options that PEFT does not know, if there are any."""
    known = _KNOWN | _HARMLESS | set(_REFUSED)
    names = sorted(name[:80] for name in set(reader.truthy_keys()) - known)
    if not names:
        return ()
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (f"{reader.where}: ignored, as peft does: {', '.join(names[:5])}{more}",)
