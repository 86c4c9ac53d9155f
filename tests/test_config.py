"""Settings: every value that is not allowed is refused with its source and what is allowed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from blockllm.config import (
    EngineSettings,
    ServerSettings,
    TenantSettings,
    describe,
    load,
    load_tenants,
    refuse_misspelt_keys,
    settings_of,
    unknown_variables,
)
from blockllm.errors import ConfigError

KINDS: dict[str, type[msgspec.Struct]] = {"engine": EngineSettings, "server": ServerSettings}
FIELDS = [
    (name, field)
    for name, kind in KINDS.items()
    for field in msgspec.structs.fields(kind)
    if field.name in settings_of(kind)
]


def wrong_values(kind: Any) -> list[Any]:
    """What a field of this type must refuse."""
    info = msgspec.inspect.type_info(kind)
    if get_origin(kind) is Literal:
        return ["", "other", get_args(kind)[0].upper(), 1]
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        assert info.ge is not None and info.le is not None, "numbers have bounds"
        outside = [info.ge - 1, info.le + 1, 10**30, -(10**30)]
        return [*outside, *map(str, outside), math.nan, math.inf, "nan", "-inf", "", "x", True, []]
    if isinstance(info, msgspec.inspect.BoolType):
        return ["", "maybe", 2, -1]
    return ["", 7, []]


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda x: getattr(x, "name", x))
def test_a_wrong_value_is_refused_from_every_source(
    section: str, field: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, variable = tmp_path / "settings.toml", f"BLOCKLLM_{field.name.upper()}"
    for value in wrong_values(field.type):
        expected = f", expected {describe(field.type)}"
        with pytest.raises(ConfigError) as caught:
            load(KINDS[section], section, None, {field.name: value})
        assert str(caught.value).startswith(f"{field.name}: got ")
        assert str(caught.value).endswith(expected)
        if isinstance(value, str):
            monkeypatch.setenv(variable, value)
            with pytest.raises(ConfigError) as caught:
                load(KINDS[section], section, None, {})
            assert str(caught.value).startswith(f"{variable}: got ")
            monkeypatch.delenv(variable)
            file.write_text(f'[{section}]\n{field.name} = "{value}"\n')
            with pytest.raises(ConfigError) as caught:
                load(KINDS[section], section, str(file), {})
            assert str(caught.value).startswith(f"settings file {file}: [{section}] {field.name}: ")


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda x: getattr(x, "name", x))
def test_allowed_values_and_defaults_are_taken(section: str, field: Any):
    info = msgspec.inspect.type_info(field.type)
    good: dict[Any, Any] = {field.default or "*": field.default or "*"}  # given: found
    if get_origin(field.type) is Literal:
        good = {value: value for value in get_args(field.type)}
    elif isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        good = {str(value): value for value in (info.ge, info.le, field.default)}
    elif isinstance(info, msgspec.inspect.BoolType):
        good = {"true": True, "false": False, "1": True, "0": False, field.default: field.default}
    for value, expected in good.items():
        found = load(KINDS[section], section, None, {field.name: value})
        assert getattr(found, field.name) == expected


def test_the_stronger_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "settings.toml"
    file.write_text("[server]\nport = 1\nhost = 'a'\nmax_stop = 1\n")
    monkeypatch.setenv("BLOCKLLM_PORT", "2")
    monkeypatch.setenv("BLOCKLLM_HOST", "b")
    found = load(ServerSettings, "server", str(file), {"port": 3, "host": None})
    assert (found.port, found.host, found.max_stop, found.max_choices) == (3, "b", 1, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ": No such file or directory"),
        ("[server", ": Expected"),
        ("[sever]\n", ": no section 'sever', expected engine, server or tenants"),
        ("server = 1\n", ": [server] must be a table"),
        ("[server]\nprot = 1\n", ": [server] prot: there is no such setting; did you mean port?"),
        ("[server]\napi_key = 123456\n", ": [server] api_key: got a value that is not shown"),
    ],
)
def test_a_wrong_file_is_named_once(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "settings.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(ServerSettings, "server", str(file), {})
    assert str(caught.value).startswith(f"settings file {file}{message}")
    assert str(caught.value).count(str(file)) == 1
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("memory", ["0", "-1GiB", "8 apples", "1e999", "nan"])
def test_a_size_that_is_none_is_refused(memory: str):
    with pytest.raises(ConfigError, match="memory: expected a size such as 4GiB"):
        load(EngineSettings, "engine", None, {"memory": memory})


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:1000", "meta"])
def test_a_device_that_is_none_is_refused(device: str):
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        load(EngineSettings, "engine", None, {"device": device})


def test_variables_that_are_no_settings_are_named_with_the_closest(monkeypatch: pytest.MonkeyPatch):
    for name in ("BLOCKLLM_HOTS", "BLOCKLLM_XYZZY", "BLOCKLLM_PORT", "BLOCKLLM_ZOO"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == {
        "BLOCKLLM_HOTS": "; did you mean BLOCKLLM_HOST?",
        "BLOCKLLM_XYZZY": "",
    }
    refuse_misspelt_keys()


@pytest.mark.parametrize("name", ["BLOCKLLM_API_KEYS", "BLOCKLLM_APIKEY"])
def test_a_misspelt_variable_for_keys_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "secret")
    with pytest.raises(ConfigError, match=f"{name}: there is no such variable.*BLOCKLLM_API_KEY"):
        refuse_misspelt_keys()


@pytest.mark.parametrize("file", ["/dev/zero", "pipe", "/dev", "a\0b"])
def test_what_is_no_file_of_settings_is_an_error_at_once(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=f"settings file {file}: "):
        load(ServerSettings, "server", file, {})


def test_a_longer_settings_file_than_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"#" * (4 << 20) + b"#")
    with pytest.raises(ConfigError, match="longer than 4 MiB"):
        load(ServerSettings, "server", str(file), {})


def test_tenants_have_tables_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[engine]\nmax_rows = 99\n[tenants.acme]\nweight = 2\nmax_waiting = 5\n")
    assert load_tenants(str(file)) == {"acme": TenantSettings(weight=2.0, max_waiting=5)}
    assert load_tenants(None) == {}
    assert load(EngineSettings, "engine", str(file), {}).max_rows == 99


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tenants]\nacme = 1\n", "[tenants.acme] must be a table"),
        ("[tenants.acme]\nweigth = 1\n", "[tenants.acme] weigth: there is no such setting; did"),
        ("[tenants.acme]\nweight = 0\n", "weight: got 0, expected a number from 0.001 to 1000"),
        ("[tenants.acme]\nweight = nan\n", "weight: got nan, expected a number from"),
        ("[tenants.acme]\nmax_rows = -1\n", "max_rows: got -1, expected an integer from 0 to"),
        ("[tenants.acme]\nmax_pages = true\n", "max_pages: got True, expected an integer from"),
        ("tenants = 1\n", "[tenants] must be a table"),
    ],
)
def test_a_wrong_value_of_a_tenant_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_tenants(str(file))
    assert str(caught.value).startswith(f"settings file {file}: [tenants") and message in str(
        caught.value
    )
