"""generation_config.json: where answers end, and how requests that do not say so are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from blockllm.zoo.settings_reader import SettingsReader
from blockllm.zoo.text.files import GENERATION, TextFiles, read_object, without_nulls

_MOST = 2**31 - 1
# field of the file → the request's field
_FIELDS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens",
}  # fmt: skip
_WHOLE = ("top_k", "max_tokens")
# (lowest, highest) of a request's sampling fields
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, _MOST),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "max_tokens": (1, _MOST),
}


class Generation(NamedTuple):
    """End tokens as the file lists them; sampling fields of requests by their names; and sentences
    about values that cannot be used."""

    ends: tuple[int, ...]
    sampling: Mapping[str, float | int]
    notes: tuple[str, ...]


def read_generation(files: TextFiles) -> Generation:
    """What the file says, nothing without one.

    Values of `sampling` that no request may have are left out and noted. Raises CheckpointError
    for a damaged file or end tokens that are no ids.
    """
    values = without_nulls(read_object(files, GENERATION))
    sampling: dict[str, float | int] = {}
    notes = []
    for name, field in _FIELDS.items():
        if name not in values:
            continue
        number = _number(values[name], field)
        if number is None:
            low, high = BOUNDS[field]
            allowed = f"got {values[name]!r:.40}, allowed {low} to {high}"
            notes.append(f"{GENERATION}: {name}: {allowed}; it is ignored")
        else:
            sampling[field] = number
    if values.get("do_sample") is False:
        sampling["temperature"] = 0
    elif not isinstance(values.get("do_sample", True), bool):
        got = f"got {values['do_sample']!r:.40}"
        notes.append(f"{GENERATION}: do_sample: {got}, expected true or false; it is ignored")
    ends = SettingsReader(values, GENERATION).integers("eos_token_id")
    return Generation(tuple(ends), sampling, tuple(notes))


def _number(value: Any, field: str) -> float | int | None:
    """The value, if a request may have it."""
    if type(value) not in (int, float):
        return None
    low, high = BOUNDS[field]
    if not low <= value <= high or (field in _WHOLE and value != int(value)):
        return None
    return int(value) if field in _WHOLE else float(value)
