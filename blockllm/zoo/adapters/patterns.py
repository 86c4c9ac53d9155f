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
_MAX_REPEATS = 3  # in one pattern; each multiplies the time by the length of a name
_PIECE = re.compile(
    r"\\(?P<escaped>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<repeat>[*+?]|\{\d*,?\d*\})"
    r"|(?P<open>\((?P<kind>\?:|\?)?)|(?P<close>\))|(?P<either>\|)|.",
    re.DOTALL,
)


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
        if len(pattern) > _MAX_PATTERN or not is_quick(pattern):
            raise UnsupportedModel(f"{section.where}: pattern {pattern[:80]!r} is too complex")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{section.where}: pattern {pattern[:80]!r}: {error}") from error
    return names


def is_quick(pattern: str) -> bool:
    """Whether a pattern matches a name of n characters in at most some n^3 steps, whatever the
    name: few repeats, none of a group that repeats or chooses itself, as `(a+)+` and `(a|aa)+` do,
    and nothing that looks back or around."""
    repeats, groups, last = 0, [False], False  # whether each open group, and the last piece, varies
    for piece in _PIECE.finditer(pattern):
        closed = False
        if piece["escaped"] is not None and piece["escaped"].isdigit():
            return False
        if piece["open"] is not None:
            if piece["kind"] == "?":
                return False
            groups.append(False)
        elif piece["close"] is not None:
            if len(groups) == 1:
                return False
            closed = groups.pop()
            groups[-1] = groups[-1] or closed
        elif piece["either"] is not None:
            groups[-1] = True
        elif piece["repeat"] is not None:
            groups[-1] = True
            if piece["repeat"] == "?":  # at most once more
                continue
            repeats += 1
            if repeats > _MAX_REPEATS or last:
                return False
        last = closed
    return True
