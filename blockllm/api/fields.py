"""Request fields that other servers have and this one does not: refused, or safe to ignore.

The names are those of OpenAI, vLLM, SGLang and llama.cpp's server. A field that would change the
answer, or ask for something that the answer would lack, is refused: an answer without it looks
right and is not what the client asked for. Names that stand nowhere here are ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Refused(NamedTuple):
    """One field that is not supported."""

    neutral: tuple[Any, ...] = ()  # values that say what would happen anyway; null always does
    instead: str = ""  # what to send instead
    unless: tuple[str, object] | None = None  # a field and its value that switch this one off


_OFF = Refused((False,))
_ZERO = Refused((0,))
_ONE = Refused((1,))
_MINUS_ONE = Refused((-1,))
_EMPTY = Refused(("", [], {}))
_ADAPTER = Refused(("", []), "the model's name chooses the adapter")
_IDS = Refused((False,), "return_token_ids gives the ids")

REFUSED: dict[str, Refused] = {
    # constraints of the answer
    "response_format": Refused(({"type": "text"},)),
    "structured_outputs": Refused(),
    "structural_tag": Refused(),
    "guided_json": Refused(),
    "guided_regex": _EMPTY,
    "guided_choice": _EMPTY,
    "guided_grammar": _EMPTY,
    "json_schema": Refused(("",)),
    "regex": _EMPTY,
    "ebnf": _EMPTY,
    "grammar": _EMPTY,
    "stop_regex": _EMPTY,
    "bad_words": _EMPTY,
    "allowed_token_ids": _EMPTY,
    "repetition_detection": Refused(),
    "thinking_token_budget": _MINUS_ONE,
    "reasoning_budget_tokens": _MINUS_ONE,
    "thinking_budget_tokens": _MINUS_ONE,
    "reasoning_control": _OFF,
    "verbosity": Refused(("medium",)),
    "t_max_predict_ms": Refused((-1, 0)),
    "n_indent": _ZERO,
    # tools
    "tools": Refused(([],), unless=("tool_choice", "none")),
    "tool_choice": Refused(("none", "auto")),
    "functions": Refused(([],), unless=("function_call", "none")),
    "function_call": Refused(("none", "auto")),
    "web_search_options": Refused(),
    "moderation": Refused(),
    # sampling
    "use_beam_search": _OFF,
    "early_stopping": _OFF,
    "length_penalty": _ONE,
    "watermarking": _OFF,
    "logits_processors": _EMPTY,
    "custom_logit_processor": _EMPTY,
    "custom_params": _EMPTY,
    "vllm_xargs": _EMPTY,
    "repeat_penalty": Refused((1,), "repetition_penalty is served"),
    "repeat_last_n": _MINUS_ONE,
    "penalize_nl": _OFF,
    "typical_p": _ONE,
    "tfs_z": _ONE,
    "top_n_sigma": Refused((-1, 0)),
    "xtc_probability": _ZERO,
    "dynatemp_range": _ZERO,
    "dry_multiplier": _ZERO,
    "mirostat": _ZERO,
    "adaptive_target": _MINUS_ONE,
    "samplers": _EMPTY,
    "min_keep": Refused((0, 1)),
    "n_predict": Refused((), "max_tokens is served"),
    "n_cmpl": Refused((1,), "n is served"),
    # the prompt
    "suffix": Refused(("",)),
    "echo": _OFF,
    "add_special_tokens": _OFF,
    "truncate_prompt_tokens": Refused(),
    "prompt_embeds": Refused(),
    "input_ids": Refused((), "/v1/completions takes ids as prompt"),
    "chat_template": Refused(),
    "continue_final_message": _OFF,
    "generation_prompt": Refused(("",)),
    "reasoning": Refused((), "reasoning_effort is served"),
    "task": Refused(),
    "session_params": _EMPTY,
    "system_prompt": _EMPTY,
    "image_data": _EMPTY,
    "modalities": Refused((["text"],)),
    "audio": Refused(),
    # another model, order or cache
    "lora": _ADAPTER,
    "lora_path": _ADAPTER,
    "lora_request": _ADAPTER,
    "adapter_id": _ADAPTER,
    "priority": _ZERO,
    "extra_key": Refused(("", []), "cache_salt keeps cached prefixes apart"),
    "kv_transfer_params": _EMPTY,
    "ec_transfer_params": _EMPTY,
    # what the answer would lack
    "prompt_logprobs": Refused(),
    "logprob_token_ids": Refused(([],)),
    "top_logprobs": Refused((0,), "logprobs is a number here"),
    "n_probs": Refused((0,), "logprobs is served"),
    "post_sampling_probs": _OFF,
    "return_tokens_as_token_ids": _IDS,
    "return_tokens": _IDS,
    "return_prompt_token_ids": _IDS,
    "return_prompt_text": _OFF,
    "return_hidden_states": _OFF,
    "return_routed_experts": _OFF,
    "return_meta_info": _OFF,
    "response_fields": Refused(([],)),
    "no_stop_trim": Refused((False,), "include_stop_str_in_output is served"),
    "include_reasoning": Refused((True,)),
    "reasoning_format": Refused(("none", "auto")),
}

IGNORED = frozenset(
    {
        # what to bill, what to keep, where to run: nothing in the answer
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "prediction", "request_id", "rid"),
        *("session_id", "custom_labels", "cache_prompt", "n_cache_reuse", "id_slot", "n_keep"),
        *("n_discard", "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank"),
        *("disagg_prefill_dp_rank", "data_parallel_rank", "ngram_corpus_id", "backend_sampling"),
        # how a stream is cut, and reports beside the answer
        *("stream_interval", "sse_ping_interval", "timings_per_token", "verbose"),
        *("return_progress", "return_cached_tokens_details", "routed_experts_prompt_start"),
        *("routed_experts_start_len", "return_token_offsets", "separate_reasoning"),
        *("stream_reasoning", "spaces_between_special_tokens"),
        # say how, of something that is refused
        *("parallel_tool_calls", "parse_tool_calls", "truncation_side", "guided_decoding_backend"),
        *("guided_whitespace_pattern", "grammar_lazy", "grammar_triggers", "grammar_type"),
        *("preserved_tokens", "chat_format", "chat_parser", "xtc_threshold", "dynatemp_exponent"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        *("mirostat_tau", "mirostat_eta", "adaptive_decay", "reasoning_budget_start_tag"),
        *("reasoning_budget_end_tag", "reasoning_budget_end_tags", "reasoning_budget_message"),
        *("mm_processor_kwargs", "media_io_kwargs", "return_mm_kwargs", "images_config"),
        *("max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video"),
    }
)

# fields of one message
REFUSED_OF_MESSAGE: dict[str, Refused] = {
    "function_call": Refused((), "tool_calls is served"),
    "audio": Refused(),
    "tools": Refused(([],)),
    "task": Refused(),
}
