"""JSON settings of a checkpoint, read value by value with type and range checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from blockllm.errors import CheckpointError
from blockllm.zoo.foreign import read_foreign

_MAX_BYTES = 16 << 20
_MAX_INTEGER = 2**31 - 1
_MAX_NUMBER = 1e12  # beyond all that models use, and far from what overflows
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`; raises CheckpointError otherwise."""
    text = read_foreign(path, max_bytes)
    try:
        document = json.loads(text.decode("utf-8"))
        if _SURROGATE.search(text):  # a lone one is no text: raises where there is one
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return document


class SettingsReader:
    """Typed access to one JSON object. Null counts as absent; an absent value takes the default,
    and without a default it is an error. Every error is a CheckpointError naming the key.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def is_given(self, name: str) -> bool:
        """Whether the key is there at all, even as null."""
        return name in self._values

    def is_text(self, name: str) -> bool:
        """Whether the value is a string, for options that may be of several types."""
        return isinstance(self._values.get(name), str)

    def is_section(self, name: str) -> bool:
        """Whether the value is an object, for options that may be of several types."""
        return isinstance(self._values.get(name), dict)

    def is_one_of(self, name: str, values: Collection[Any]) -> bool:
        """Whether the value is one of these, for keys that must not ask for anything else."""
        return self._values.get(name) in values

    def shown(self, name: str) -> str:
        """The value as error messages show it."""
        return _short(self._values.get(name))

    def all_keys(self) -> list[str]:
        """Every key."""
        return list(self._values)

    def truthy_keys(self) -> list[str]:
        """Keys whose value is neither null, false, zero nor empty."""
        return [name for name, value in self._values.items() if value]

    def integer(
        self, name: str, default: int | None = None, low: int = 1, high: int = _MAX_INTEGER
    ) -> int:
        """An integer within [low, high]; an integral float counts."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"an integer from {low} to {high}", value)
        return value

    def number(
        self,
        name: str,
        default: float | None = None,
        low: float = 0.0,
        high: float = _MAX_NUMBER,
    ) -> float:
        """A finite number from `low` to `high`."""
        value = self._get(name, default)
        if type(value) not in (int, float):
            raise self.error(name, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and low <= number <= high):
            least = f" of at least {low:g}" if math.isfinite(low) else ""
            most = f" and at most {high:g}" if high < _MAX_NUMBER or number > high else ""
            raise self.error(name, f"a finite number{least}{most}", value)
        return number

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "a string", value)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty if absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "a list of strings", value)
        return value

    def integers(self, name: str) -> list[int]:
        """One integer or a list of integers; empty if absent."""
        value = self._get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in values):
            raise self.error(name, "an integer or a list of integers", value)
        return values

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """A list of pairs of integers; empty if absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(_is_pair(item) for item in value):
            raise self.error(name, "a list of pairs of integers", value)
        return [(first, second) for first, second in value]

    def section(self, name: str) -> SettingsReader:
        """A nested object; empty if absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object", value)
        return SettingsReader(value, f"{self.where}: {name}")

    def error(self, name: str, expected: str, value: Any) -> CheckpointError:
        """The error that says what was expected for a key."""
        return CheckpointError(f"{self.where}: {name}: expected {expected}, got {_short(value)}")

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a huge number"
    return f"{value!r:.60}"
