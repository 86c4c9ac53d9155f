"""adapter_config.json of AdapterHub's bottleneck adapters: where they sit and what is refused.

With y what attention or MLP computes and s the residual stream, a pre-norm decoder layer computes

    original_ln_before: false     s + y + A(y)          Houlsby
    original_ln_before: true      s + y + A(s + y)      Pfeiffer
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from blockllm.errors import UnsupportedModel
from blockllm.zoo.settings_reader import SettingsReader

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "leakyrelu": "leakyrelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# before it wrote its version, the library called activations otherwise
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_KNOWN = {
    "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before",
    "original_ln_after", "residual_before_ln", "scaling", "leave_out",
}  # fmt: skip
# how it was trained, or options of features that are refused themselves
_HARMLESS = {
    "adapter_residual_before_ln", "dropout", "factorized_phm_W", "factorized_phm_rule",
    "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
    "inv_adapter_reduction_factor", "learn_phm", "phm_bias", "phm_c_init", "phm_dim",
    "phm_init_range", "phm_rank", "shared_W_phm", "shared_phm_rule", "stochastic_depth",
}  # fmt: skip
# elsewhere the library normalises between the residual stream and the adapter
_STREAM_FAMILIES = ("llama", "mistral")


class BottleneckConfig(NamedTuple):
    """The options of a bottleneck adapter that matter for serving it."""

    name: str
    modules: tuple[str, ...]
    activation: str
    reads: Literal["output", "stream"]
    scale: float
    left_out: frozenset[int]
    factors: dict[str, float]

    def size(self, layer: int, hidden: int) -> int:
        """Width of the bottleneck in a layer."""
        factor = self.factors.get(str(layer), self.factors.get("default"))
        if factor is None:
            raise UnsupportedModel(f"reduction_factor: none for layer {layer}")
        return max(1, int(hidden // factor))


def read_bottleneck_config(reader: SettingsReader) -> BottleneckConfig:
    """The adapter's options; raises UnsupportedModel for those that are not supported."""
    config = reader.section("config")
    strangers = sorted(set(config.truthy_keys()) - _KNOWN - _HARMLESS)
    if strangers:
        raise UnsupportedModel(f"{config.where}: the option {strangers[0][:80]!r} is not supported")
    places = {"mh_adapter": "self_attn", "output_adapter": "mlp"}
    left_out = config.integers("leave_out")
    return BottleneckConfig(
        name=reader.text("name"),
        modules=tuple(m for option, m in places.items() if config.boolean(option)),
        activation=_activation(config, is_old="version" not in reader),
        reads=_reads(config, reader.text("model_type", "")),
        scale=_scale(config),
        left_out=frozenset(left_out),
        factors=_factors(config),
    )


def _activation(config: SettingsReader, is_old: bool) -> str:
    name = config.text("non_linearity").lower()
    name = _OLD_ACTIVATIONS.get(name, name) if is_old else name
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"non_linearity {name[:40]!r} is not supported (known: {known})")
    return _ACTIVATIONS[name]


def _reads(config: SettingsReader, family: str) -> Literal["output", "stream"]:
    before = config.boolean("original_ln_before", False)
    after = config.boolean("original_ln_after", True)
    if config.is_text("residual_before_ln"):
        name = config.text("residual_before_ln")
        raise UnsupportedModel(f"residual_before_ln {name[:40]!r} is not supported")
    residual = config.boolean("residual_before_ln", True)
    if not before and after:
        return "output"
    # otherwise the residual stream would be added twice, or not at all
    if before and after == residual:
        if family in _STREAM_FAMILIES:
            return "stream"
        raise UnsupportedModel(
            f"original_ln_before: supported for {' and '.join(_STREAM_FAMILIES)}, not for models "
            f"of type {family[:40]!r}"
        )
    raise UnsupportedModel(
        f"original_ln_before {before}, original_ln_after {after}, residual_before_ln {residual}: "
        "this combination is not supported"
    )


def _scale(config: SettingsReader) -> float:
    if config.is_text("scaling"):
        raise UnsupportedModel(f"scaling {config.text('scaling')[:40]!r} is not supported")
    return config.number("scaling", 1.0, low=-math.inf)


def _factors(config: SettingsReader) -> dict[str, float]:
    if not config.is_section("reduction_factor"):
        return {"default": config.number("reduction_factor", low=1e-6)}
    section = config.section("reduction_factor")
    return {key: section.number(key, low=1e-6) for key in section.all_keys()}
