"""Numbers by module: PEFT's rank_pattern, alpha_pattern and their like, by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.settings_reader import SettingsReader

Number = TypeVar("Number", int, float)

# larger than any useful rank; bounds what a wrong file can ask for
MAX_RANK = 1 << 16
_MAX_PATTERN = 512
# `(a+)+`: takes exponential time on some names
_SLOW_PATTERN = re.compile(r"[+*}]\)[+*{]")


@dataclass(frozen=True)
class ByModule(Generic[Number]):
    """A number that some modules have of their own."""

    default: Number
    own: Mapping[str, Number]

    def of(self, module: str) -> Number:
        """That of a module such as `model.layers.0.self_attn.q_proj`: of the first pattern that
        matches the end of its name, as peft chooses."""
        for pattern, value in self.own.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self.default


def read_ranks(reader: SettingsReader, name: str = "r", own: str = "rank_pattern") -> ByModule[int]:
    """A size such as a rank, and the modules that have another; raises a CheckpointError."""
    section = reader.section(own)
    values = {key: section.integer(key, high=MAX_RANK) for key in _patterns(section)}
    return ByModule(reader.integer(name, high=MAX_RANK), values)


def read_numbers(
    reader: SettingsReader, name: str, own: str, default: float | None = None
) -> ByModule[float]:
    """A number, and the modules that have another; raises a CheckpointError."""
    section = reader.section(own)
    values = {key: section.number(key) for key in _patterns(section)}
    return ByModule(reader.number(name, default), values)


def _patterns(section: SettingsReader) -> list[str]:
    names = section.all_keys()
    for pattern in names:
        if len(pattern) > _MAX_PATTERN or _SLOW_PATTERN.search(pattern):
            raise UnsupportedModel(f"{section.where}: pattern {pattern[:80]!r} is too complex")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{section.where}: pattern {pattern[:80]!r}: {error}") from error
    return names
