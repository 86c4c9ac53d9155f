"""Frozen settings, one struct per room, and one loader: defaults < file < environment < flags."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from blockllm.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def default_zoo() -> str:
    """Folder of the zoo unless `--zoo` or BLOCKLLM_ZOO says otherwise."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(data) / "blockllm" / "zoo")


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one agent's engine; docs/settings.md describes each."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory: str = "auto"
    page_size: int = 16
    max_rows: int = 512
    max_turn_seconds: float = 0.5
    max_sequences: int = 64
    max_context: int = 0
    max_waiting: int = 2048
    batching: Literal["blocks", "models"] = "blocks"
    cut: Literal["lazy", "layers"] = "lazy"
    prefix_cache: bool = True
    kernels: Literal["auto", "plain"] = "auto"
    overlap: Literal["auto", "on", "off"] = "auto"
    threads: int = 0


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the HTTP process; docs/settings.md describes each."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: str = ""
    api_key_file: str = ""
    shared_prefixes: bool = False
    drain_timeout: float = 30.0
    keep_alive: int = 75
    max_body_bytes: int = 4 * 1024 * 1024
    max_choices: int = 16
    max_prompts: int = 64
    max_stop: int = 16
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(kind: type[T], section: str, file: str | None, flags: dict[str, Any]) -> T:
    """Merge the sources for one settings struct; flags that are None were not given.

    Raises ConfigError naming the source and the setting.
    """
    values: dict[str, Any] = dict(_from_file(file, section)) if file else {}
    for field in msgspec.structs.fields(kind):
        text = os.environ.get(f"BLOCKLLM_{field.name.upper()}")
        if text is not None:
            values[field.name] = text
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings for [{section}]: {error}") from error


def _from_file(file: str, section: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings file {file}: {error}") from error
    unknown = set(document) - {"engine", "server"}
    if unknown:
        raise ConfigError(f"settings file {file}: unknown section {sorted(unknown)[0]!r}")
    table = document.get(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"settings file {file}: [{section}] must be a table")
    return table


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `800M`, `4GiB` or `1073741824` (binary units)."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in "kmgt" else ""
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"memory: expected a size such as 4GiB or 800M, got {text!r}")
    return size
