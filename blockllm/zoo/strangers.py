"""Tensors of a checkpoint that its family does not read: skipped, or signs of another file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from blockllm.errors import CheckpointError

# transformers ignores these too, and no next token depends on them
_SKIPPED = re.compile(
    r"(.*\.)?rotary_emb\..+"  # tables that every program computes for itself
    r"|(.*\.)?rope\.freqs"
    r"|(.*\.)?(attn|self_attn|attention)\.(bias|masked_bias)"  # causal masks kept as buffers
    r"|(.*\.)?position_ids"
    r"|(.*\.)?_extra_state"  # of Transformer Engine
    r"|(v_head|value_head)\..+"  # what reinforcement learning trains beside a model
)
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_MAX_NAMES = 5

# what a name says about how the file was written, and what to do
_CAUSES = (
    (r"base_model\.model\.|.*\.(lora_[AB]|base_layer)\.", "an adapter that is not merged: save it "
     "with the adapter's own save_pretrained, or call merge_and_unload() first"),
    (r"_orig_mod\.", "a compiled model: save the model that torch.compile was given"),
    (r"module\.", "a model in a data-parallel wrapper: save its .module"),
    (r".*_fsdp_wrapped_module\.", "a model in an FSDP wrapper: gather the full state dict and save "
     "that with save_pretrained"),
    (r"(model\.)?(language_model|vision_tower|multi_modal_projector|visual)\.",
     "a model that reads images too, which is not supported"),
    (r"(layers\.0\.attention\.wq|tok_embeddings)\.", "the makers' own format: convert it to the "
     "Hugging Face format"),
    (r".*\.(mlp\.experts|block_sparse_moe)\.", "a mixture of experts, which is not supported"),
    (r"(score|classifier|reward_head)\.", "a model that scores texts instead of continuing them, "
     "which is not supported"),
    (r"(embed_tokens|layers\.0)\.", "a model saved without its head: save the …ForCausalLM model"),
)  # fmt: skip


def is_skipped(name: str) -> bool:
    """Whether a tensor can be left out: no next token depends on it."""
    return _SKIPPED.fullmatch(name) is not None


def skipped_note(names: Collection[str], what: str) -> tuple[str, ...]:
    """The sentence for the report about what was left out; none if nothing was."""
    if not names:
        return ()
    groups = Counter(_NUMBER.sub("*", name[:200]) for name in names)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in groups.items()]
    more = f" and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    return (f"skipped {what}: {', '.join(shown[:_MAX_NAMES])}{more} ({len(names)} in all)",)


def wrong_tensors(problem: str, names: Iterable[str]) -> CheckpointError:
    """The error for tensors that are missing or unknown; says what kind of file has such names."""
    names = list(names)
    for pattern, cause in _CAUSES:
        if any(re.match(pattern, name) for name in names):
            return CheckpointError(f"{problem}; its tensors are those of {cause}")
    return CheckpointError(problem)
