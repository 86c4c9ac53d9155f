"""Differences kept like a singular value decomposition, B diag(E) A.

AdaLoRA (arXiv 2303.10512)   (module).lora_A [r, in]   lora_B [out, r]   lora_E [r, 1]
    r is what the allocation left of a module's first rank; the scale goes by the first.
"""

from __future__ import annotations

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.computed.module import COMMON, Change, Module, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_ADALORA = {".lora_A": "a", ".lora_B": "b", ".lora_E": "e"}
_ADALORA_OPTIONS = COMMON | {
    "beta1", "beta2", "deltaT", "init_lora_weights", "init_r", "lora_alpha", "lora_dropout",
    "megatron_core", "orth_reg_weight", "qalora_group_size", "r", "rank_pattern", "runtime_config",
    "target_r", "tfinal", "tinit", "total_step",
}  # fmt: skip
# what peft adds to a rank before it divides by it
_EPSILON = 1e-5


def read_adalora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's ADALORA; raises a CheckpointError."""
    check_options(reader, _ADALORA_OPTIONS)
    first = reader.integer("init_r", 12)
    alpha = reader.number("lora_alpha", 8)

    def change(module: Module) -> Change:
        (out, inputs), rank = module.sizes, _rank(module)
        if rank > first:
            raise AdapterMismatch(f"{module.name[:200]}: rank {rank}, but init_r is {first}")
        if rank == 0:  # the allocation left nothing of it
            return Change()
        module.check({"a": (rank, inputs), "b": (out, rank), "e": (rank, 1)})
        scale = (alpha or rank) / (first + _EPSILON)
        return module.low_rank(
            rank, lambda _: module.read("a") * module.read("e"), module.parts["b"], scale
        )

    return read_modules(reader, "adalora", strip_prefix(tensors), layers, _ADALORA, change)


def _rank(module: Module) -> int:
    shape = module.parts["e"].entry.shape if "e" in module.parts else ()
    if len(shape) != 2:
        raise AdapterMismatch(f"{module.name[:200]}: expected lora_E [rank, 1], got {list(shape)}")
    return shape[0]
