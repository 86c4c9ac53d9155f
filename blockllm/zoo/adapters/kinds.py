"""Which kind of adapter a folder holds, and which file reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.bottleneck import read_bottlenecks
from blockllm.zoo.adapters.ia3 import read_ia3
from blockllm.zoo.adapters.lora import read_lora
from blockllm.zoo.adapters.options import ignored_note
from blockllm.zoo.adapters.plan import AdapterPlan, Layers
from blockllm.zoo.adapters.tokens import read_tokens
from blockllm.zoo.adapters.virtual import read_prefix, read_prompt
from blockllm.zoo.adapters.whole import read_biases, read_norms
from blockllm.zoo.causes import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SAVING
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.foreign import is_there
from blockllm.zoo.settings_reader import SettingsReader, read_json

_PEFT_FILES = (ADAPTER_WEIGHTS,)
_HUB_FILES = ("adapter.safetensors", "model.safetensors")
_HUB_SAVING = "save_adapter(..., use_safetensors=True)"

_Reader = Callable[[SettingsReader, dict[str, Source], Layers], AdapterPlan]

_PEFT: dict[str, _Reader] = {
    "BITFIT": read_biases,
    "CARTRIDGE": read_prefix,
    "CPT": read_prompt,
    "IA3": read_ia3,
    "LN_TUNING": read_norms,
    "LORA": read_lora,
    "PREFIX_TUNING": read_prefix,
    "PROMPT_TUNING": read_prompt,
    "P_TUNING": read_prompt,
    "TRAINABLE_TOKENS": read_tokens,
}


# kinds that PEFT writes and no target stands for; why, and what to do
REFUSED = {
    "ADAMSS": (
        "its updates belong to clusters of a weight's rows that are not in the file; merge it "
        "(merge_and_unload) and add the result as a model"
    ),
    "ADAPTION_PROMPT": (
        "its tokens stand in the upper layers only, behind a gate of their own; it cannot be "
        "merged either: train prefix tuning instead"
    ),
    "LILY": (
        "a router mixes its updates by the mean over all tokens of a batch, so an answer would "
        "depend on other requests; it cannot be merged either"
    ),
    "MULTITASK_PROMPT_TUNING": (
        "each request would have to name a task; save the prompt of one task as prompt tuning: "
        "prompt_embeddings * (prefix_task_cols[task] @ prefix_task_rows[task])"
    ),
    "POLY": "a router mixes its skills by a task that each request would have to name",
    "PSOFT": (
        "its frame is a singular value decomposition that is not in the file, and libraries "
        "choose its signs differently; merge it (merge_and_unload) and add the result as a model"
    ),
    "SHADOW": (
        "a second network runs beside the base's layers and steers them; it cannot be merged either"
    ),
    "XLORA": (
        "a classifier mixes its adapters anew for each token; add each of the adapters as a model "
        "of its own (they lie in subfolders) and let the client choose"
    ),
}


class AdapterKind(NamedTuple):
    """How one folder is read: the names its weight file may have, how to save it safely, the base
    it was made for, and the reader of its tensors."""

    files: tuple[str, ...]
    saving: str
    base: str
    config: SettingsReader
    reader: _Reader

    def read(self, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
        """Check options and tensors against the base's layers; raises a CheckpointError."""
        plan = self.reader(self.config, tensors, layers)
        if not plan.additions and not plan.replaced:
            raise AdapterMismatch("the adapter has no tensors")
        ignored = ignored_note(self.config) if "peft_type" in self.config else ()
        return plan._replace(notes=(*plan.notes, *ignored))


def choose_kind(folder: Path) -> AdapterKind:
    """The kind of adapter in a folder; raises UnsupportedModel for one that is not known."""
    config = SettingsReader(read_json(folder / ADAPTER_CONFIG), ADAPTER_CONFIG)
    if "peft_type" not in config and "config" in config:
        if is_there(folder / "head_config.json"):
            raise UnsupportedModel(
                "the adapter has a prediction head of its own (head_config.json), which is not "
                "supported; if it was not trained, save the adapter with with_head=False"
            )
        base = config.text("model_name", "")
        return AdapterKind(_HUB_FILES, _HUB_SAVING, base, config, read_bottlenecks)
    name = config.text("peft_type")
    base = config.text("base_model_name_or_path", "")
    return AdapterKind(_PEFT_FILES, SAVING, base, config, _PEFT.get(name) or _find_reader(name))


def supported_types() -> list[str]:
    """Every `peft_type` that is read."""
    from blockllm.zoo.adapters.computed import READERS  # imports numpy

    return sorted({*_PEFT, *READERS})


def _find_reader(name: str) -> _Reader:
    from blockllm.zoo.adapters.computed import READERS

    if name in REFUSED:
        raise UnsupportedModel(f"{ADAPTER_CONFIG}: {name} is not supported: {REFUSED[name]}")
    if name not in READERS:
        known = ", ".join(supported_types())
        raise UnsupportedModel(
            f"{ADAPTER_CONFIG}: adapter type {name[:40]} is not supported (supported: {known})"
        )
    return READERS[name]
