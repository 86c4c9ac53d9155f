"""Attention windows of the decoder layers, in tokens; None: a layer sees its whole context."""

from __future__ import annotations

from blockllm.zoo.settings_reader import SettingsReader

Windows = list[int | None]

_FULL = ("full_attention", "attention")  # the second is what old files call it
_SLIDING = "sliding_attention"


def check_no_window(config: SettingsReader, max_context: int) -> None:
    """For a family without windows: raise CheckpointError if config.json asks for one that is
    shorter than the context, since programs differ in what they then compute.
    """
    advice = "(a llama has no windows; if the model was trained with them, model_type is mistral)"
    kinds = config.texts("layer_types")
    if set(kinds) - set(_FULL):
        raise config.error("layer_types", f"{_FULL[0]} for every layer {advice}", kinds)
    window = config.integer("sliding_window", max_context, low=0)
    if window < max_context:
        raise config.error("sliding_window", f"none, or at least {max_context} {advice}", window)


def mistral_windows(config: SettingsReader, num_layers: int) -> Windows:
    """`sliding_window` in every layer, or in those that `layer_types` names."""
    window = _window(config)
    if "layer_types" not in config:
        return [window] * num_layers
    return _by_type(config, num_layers, window)


def qwen_windows(config: SettingsReader, num_layers: int) -> Windows:
    """No windows unless `use_sliding_window`; then as `layer_types` says, or from layer
    `max_window_layers` on."""
    window = _window(config) if config.boolean("use_sliding_window", False) else None
    if "layer_types" not in config:
        first = config.integer("max_window_layers", 28, low=0)
        return [window if index >= first else None for index in range(num_layers)]
    return _by_type(config, num_layers, window)


def _window(config: SettingsReader) -> int | None:
    is_null = config.is_given("sliding_window") and "sliding_window" not in config
    return None if is_null else config.integer("sliding_window", 4096)


def _by_type(config: SettingsReader, num_layers: int, window: int | None) -> Windows:
    kinds = config.texts("layer_types")
    known = {**dict.fromkeys(_FULL), _SLIDING: window}
    if len(kinds) != num_layers or not set(kinds) <= set(known):
        raise config.error("layer_types", f"{num_layers} of {_FULL[0]}, {_SLIDING}", kinds)
    if window is None and _SLIDING in kinds:
        raise config.error("sliding_window", f"a window for the layers of type {_SLIDING}", None)
    return [known[kind] for kind in kinds]
