"""Whole tensors of a PEFT file by the base's names: what PEFT's wrappers add is taken off.

(module).weight                              its own, or the trained copy of `modules_to_save`
(module).base_layer.weight                   its own, under a low-rank update or trained rows
(module).token_adapter.base_layer.weight     the same
(module).modules_to_save.weight              the trained copy once more
(module).original_module.weight              its own beside the copy: nothing is computed with it

The last two come with `save_embedding_layers`, which PEFT sets where the vocabulary was resized.
PEFT leaves an adapter's name out; other writers of such files do not (`modules_to_save.default`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from blockllm.errors import AdapterMismatch
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_WRAPPER = re.compile(r"\.(?:base_layer|token_adapter)(?=\.)")
_COPY = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.(?:weight|bias)$)")
_ORIGINAL = re.compile(r"\.original_module(?=\.)")


class Whole(NamedTuple):
    """A tensor of the adapter. `is_copy`: it stands beside the base's own, which stays what it is
    for whatever else shares it; otherwise it is loaded into the base's own."""

    source: Source
    is_copy: bool


def read_spellings(reader: SettingsReader, tensors: Mapping[str, Source]) -> dict[str, Whole]:
    """The tensors to compute with by the base's names; raises AdapterMismatch where that is not
    clear."""
    found: dict[str, tuple[bool, Source]] = {}  # and whether `modules_to_save` is in its name
    originals = set()
    for key, source in tensors.items():
        name = _WRAPPER.sub("", key)
        if _ORIGINAL.search(name):
            originals.add(_ORIGINAL.sub("", name))
            continue
        plain = _COPY.sub("", name)
        again = plain != name
        known = found.get(plain)
        if known is not None and known[0] == again:
            raise AdapterMismatch(f"tensor {plain[:200]!r} is there in two ways")
        if known is None or known[0]:  # as peft: the name without modules_to_save goes first
            found[plain] = (again, source)
    if not originals <= set(found):
        name = min(originals - set(found))
        raise AdapterMismatch(f"of {name[:200]!r} the base's own is there, but no trained copy")
    copied = tuple(f".{module}" for module in reader.texts("modules_to_save"))
    return {
        name: Whole(source, again or f".{name.rpartition('.')[0]}".endswith(copied))
        for name, (again, source) in found.items()
    }
