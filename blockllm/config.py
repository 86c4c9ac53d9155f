"""Frozen settings, one struct per room, and one loader: defaults < file < environment < flags."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from blockllm.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)

PREFIX = "BLOCKLLM_"
_OTHER_VARIABLES = ("ZOO", "BENCH_KEYS")  # behind the prefix
_MAX_FILE = 4 << 20  # bytes
_SECRET = frozenset({"api_key"})  # settings whose values are not shown

Text = Annotated[str, Meta(min_length=1)]
Device = Annotated[
    str, Meta(pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$", description="auto, cpu, cuda or cuda:N")
]
Memory = Annotated[str, Meta(min_length=1, description="auto, or a size such as 8GiB or 800M")]
_ORIGIN = r"https?://[^/\s,*]+"
Origins = Annotated[
    str,
    Meta(
        pattern=rf"^(\*|{_ORIGIN}(\s*,\s*{_ORIGIN})*)$",
        description="*, or origins such as https://chat.example.org with commas between",
    ),
]
RowLimits = Annotated[
    str,
    Meta(pattern=r"^(off|auto|[1-9]\d{0,5})$", description="off, auto or a number of rows"),
]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Amount = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


def default_zoo() -> str:
    """Folder of the zoo unless `--zoo` or BLOCKLLM_ZOO says otherwise."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(data) / "blockllm" / "zoo")


class TenantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weight and quotas of one tenant, 0: no quota; docs/settings.md describes each."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    max_rows: Amount = 0
    max_pages: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_waiting: Amount = 0


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one agent's engine; docs/settings.md describes each."""

    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory: Memory = "auto"
    page_size: Annotated[int, Meta(ge=1, le=1024)] = 16
    max_rows: Count = 512
    max_turn_seconds: Seconds = 0.5
    max_sequences: Annotated[int, Meta(ge=1, le=16_384)] = 64
    max_context: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_waiting: Count = 2048
    batching: Literal["blocks", "models", "layered", "lanes"] = "blocks"
    block_limits: RowLimits = "off"
    cut: Literal["lazy", "layers"] = "lazy"
    prefix_cache: bool = True
    kernels: Literal["auto", "plain"] = "auto"
    verify_weights: bool = True
    overlap: Literal["auto", "on", "off"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    tenants: dict[str, TenantSettings] = {}  # by name; see `load_tenants`

    def __post_init__(self) -> None:
        if self.memory != "auto":
            parse_bytes(self.memory)


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the HTTP process; docs/settings.md describes each."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    api_key: Text = ""
    api_key_file: Text = ""
    allowed_origins: Origins = ""
    shared_prefixes: bool = False
    special_tokens_in_messages: bool = False
    sampling_defaults: Literal["model", "openai"] = "model"
    drain_timeout: Seconds = 30.0
    hang_timeout: Annotated[float, Meta(ge=1, le=86_400)] = 30.0
    keep_alive: Annotated[int, Meta(ge=1, le=86_400)] = 75
    head_timeout: Annotated[float, Meta(ge=1, le=3600)] = 20.0
    body_timeout: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    reader_timeout: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    max_connections: Count = 4096
    text_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 4 * 1024 * 1024
    max_choices: Count = 16
    max_prompts: Count = 64
    max_stop: Amount = 16
    max_logprobs: Amount = 20
    max_logit_bias: Amount = 1024
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class _Given(NamedTuple):
    """A setting's value as it was given, and what the place calls it."""

    name: str
    value: Any
    label: str


def load(kind: type[T], section: str, file: str | None, flags: dict[str, Any]) -> T:
    """Merge the sources for one settings struct; flags that are None were not given.

    Raises ConfigError naming the source, the setting, what was found and what is allowed.
    """
    return _make(kind, _all_given(settings_of(kind), section, file, flags))


def load_tenants(file: str | None) -> dict[str, TenantSettings]:
    """Weights and quotas by tenant: the tables `[tenants.NAME]` of a settings file. Raises
    ConfigError naming the table, the setting, what was found and what is allowed."""
    found = {}
    for name, table in _from_file(file, "tenants").items() if file else ():
        label = f"settings file {file}: [tenants.{name}]"
        if not isinstance(table, dict):
            raise ConfigError(f"{label} must be a table")
        given = (_Given(key, value, f"{label} {key}") for key, value in table.items())
        found[name] = _make(TenantSettings, given)
    return found


def settings_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The types of the settings that have one value each, by name."""
    fields = msgspec.structs.fields(kind)
    return {field.name: field.type for field in fields if field.name != "tenants"}


def _make(kind: type[T], all_given: Iterable[_Given]) -> T:
    """The settings with these values, the last one of each."""
    types, values = settings_of(kind), dict[str, Any]()
    for given in all_given:
        if given.name not in types:
            hint = _closest(given.name, types)
            raise ConfigError(f"{given.label}: there is no such setting{hint}")
        values[given.name] = _convert(given, types[given.name])
    return kind(**values)


def unknown_variables() -> dict[str, str]:
    """Variables of the environment that look like settings and are none; each with a hint."""
    kinds: tuple[type[msgspec.Struct], ...] = (EngineSettings, ServerSettings)
    settings = [name.upper() for kind in kinds for name in settings_of(kind)]
    known = {*_OTHER_VARIABLES, *settings}
    ours = sorted(name for name in os.environ if name.startswith(PREFIX))
    names = [name.removeprefix(PREFIX) for name in ours]
    return {PREFIX + name: _closest(name, known, PREFIX) for name in names if name not in known}


def refuse_misspelt_keys() -> None:
    """Raise ConfigError when an unknown variable seems to hold API keys: a server that is meant to
    ask for a key must not start without."""
    for name, hint in unknown_variables().items():
        if "KEY" in name:
            raise ConfigError(f"{name}: there is no such variable{hint}")


def _all_given(
    names: Iterable[str], section: str, file: str | None, flags: dict[str, Any]
) -> Iterator[_Given]:
    """From the weakest source to the strongest."""
    if file:
        for name, value in _from_file(file, section).items():
            yield _Given(name, value, f"settings file {file}: [{section}] {name}")
    for name in names:
        text = os.environ.get(PREFIX + name.upper())
        if text is not None:
            yield _Given(name, text, PREFIX + name.upper())
    for name, value in flags.items():
        if value is not None:
            yield _Given(name, value, name)


def _convert(given: _Given, kind: Any) -> Any:
    try:
        value = msgspec.convert(given.value, kind, strict=False)
    except msgspec.ValidationError:
        value = None
    if value is None:
        shown = "a value that is not shown" if given.name in _SECRET else repr(given.value)[:80]
        if given.value == "":
            shown = "nothing"
        raise ConfigError(f"{given.label}: got {shown}, expected {describe(kind)}")
    return value


def describe(kind: Any) -> str:
    """What values a setting of this type may have, in words."""
    if get_origin(kind) is Literal:
        return _either(get_args(kind))
    found = msgspec.inspect.type_info(kind)
    if isinstance(found, msgspec.inspect.Metadata):
        return str((found.extra_json_schema or {})["description"])
    if isinstance(found, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        number = "an integer" if isinstance(found, msgspec.inspect.IntType) else "a number"
        return f"{number} from {found.ge} to {found.le}"
    return "true or false" if isinstance(found, msgspec.inspect.BoolType) else "a text, not empty"


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _closest(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def read_text(name: str, file: str) -> str:
    """The UTF-8 text of a file of settings. Raises ConfigError, which begins with `name`."""
    try:
        # without O_NONBLOCK a named pipe that nothing writes to would block for ever
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise ConfigError(f"{name}: not a regular file")
            data = opened.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise ConfigError(f"{name}: longer than {_MAX_FILE >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text") from error
    except ValueError as error:  # a path with a null
        raise ConfigError(f"{name}: {error}") from error


def _from_file(file: str, section: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(read_text(f"settings file {file}", file))
    except ValueError as error:  # not TOML
        raise ConfigError(f"settings file {file}: {error}") from error
    unknown = set(document) - {"engine", "server", "tenants"}
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(
            f"settings file {file}: no section {name!r}, expected engine, server or tenants"
        )
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
