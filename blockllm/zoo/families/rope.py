"""Rotary embedding settings, as transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`) spell them, read the way transformers 5 reads both.
"""

from __future__ import annotations

from typing import Literal, cast

from blockllm.core import Rope
from blockllm.errors import UnsupportedModel
from blockllm.zoo.families.foreign import refuse_foreign_rope
from blockllm.zoo.settings_reader import SettingsReader

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
_DEFAULT_THETA = 10_000.0
# the formulas divide by the logarithm of theta, by factors, and by their difference
_MIN_THETA = 1.001
_MIN_FACTOR = 1e-3
_MAX_FACTOR = 1e6  # also of a beta: far beyond all in use, far from where the formulas overflow
_MAX_CONTEXT = 2**31 - 1


def read_rope(config: SettingsReader, max_position: int) -> Rope:
    """The rotary embedding of all layers; `max_position` is config.json's
    `max_position_embeddings`. Raises UnsupportedModel for scalings that are not known.
    """
    # transformers 5 lets a non-empty rope_scaling win over rope_parameters
    name = "rope_scaling" if config.section("rope_scaling").truthy_keys() else "rope_parameters"
    section = config.section(name)
    refuse_foreign_rope(section)
    kind = section.text("rope_type", section.text("type", "default"))
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise UnsupportedModel(f"rope scaling {kind[:40]!r} is not supported (known: {known})")
    outer = config.number("rope_theta", _DEFAULT_THETA, low=_MIN_THETA)
    theta = section.number("rope_theta", outer, low=_MIN_THETA)
    rope = Rope(theta=theta, kind=cast(Literal["default"], kind))
    return _READERS[kind](rope, config, section, max_position)


def max_context(config: SettingsReader, rope: Rope, max_position: int) -> int:
    """Tokens the model was made for. `max_position_embeddings` is that where the scaling was there
    when the model was trained (default, llama3, linear; FastChat's linear models say it in
    `max_sequence_length`). With dynamic and yarn, which are often added later, the original length
    times the factor may be longer.
    """
    if rope.kind == "linear":
        stretched = int(max_position * rope.factor)
        return max(max_position, min(stretched, config.integer("max_sequence_length", 1)))
    if rope.kind in ("dynamic", "yarn"):
        stretched = int(rope.original_max_position * rope.factor)
        return max(max_position, min(stretched, _MAX_CONTEXT))
    return max_position


def _default(rope: Rope, config: SettingsReader, section: SettingsReader, limit: int) -> Rope:
    return rope


def _linear(rope: Rope, config: SettingsReader, section: SettingsReader, limit: int) -> Rope:
    return Rope(
        theta=rope.theta,
        kind="linear",
        factor=section.number("factor", low=_MIN_FACTOR, high=_MAX_FACTOR),
    )


def _dynamic(rope: Rope, config: SettingsReader, section: SettingsReader, limit: int) -> Rope:
    factor = section.number("factor", low=_MIN_FACTOR, high=_MAX_FACTOR)
    return Rope(theta=rope.theta, kind="dynamic", factor=factor, original_max_position=limit)


def _yarn(rope: Rope, config: SettingsReader, section: SettingsReader, limit: int) -> Rope:
    original = _original(config, section, limit)
    optional = {
        name: section.number(name)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
        if name in section
    }
    # as in transformers, a null `truncate` means no
    untruncated = section.is_given("truncate") and not section.boolean("truncate", False)
    return Rope(
        theta=rope.theta,
        kind="yarn",
        factor=section.number("factor", limit / original, low=_MIN_FACTOR, high=_MAX_FACTOR),
        original_max_position=original,
        beta_fast=_beta(section, "beta_fast", 32.0),
        beta_slow=_beta(section, "beta_slow", 1.0),
        truncate=not untruncated,
        **optional,
    )


def _beta(section: SettingsReader, name: str, default: float) -> float:
    """Rotations within the original length; zero means the default, as in transformers."""
    if section.number(name, default) == 0:
        return default
    return section.number(name, default, low=_MIN_FACTOR, high=_MAX_FACTOR)


def _llama3(rope: Rope, config: SettingsReader, section: SettingsReader, limit: int) -> Rope:
    low = section.number("low_freq_factor", low=_MIN_FACTOR)
    return Rope(
        theta=rope.theta,
        kind="llama3",
        factor=section.number("factor", low=_MIN_FACTOR, high=_MAX_FACTOR),
        original_max_position=_original(config, section, limit),
        low_freq_factor=low,
        high_freq_factor=section.number("high_freq_factor", low=low + _MIN_FACTOR),
    )


def _original(config: SettingsReader, section: SettingsReader, limit: int) -> int:
    name = "original_max_position_embeddings"
    # beside the section it wins over the one inside, as in transformers (Phi-3 spelling)
    return config.integer(name) if name in config else section.integer(name, limit)


_READERS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
