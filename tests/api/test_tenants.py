"""Weights and quotas on their way from the settings file to the engine, and back as an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockllm.api.keys import KeyRing, check_tenants
from blockllm.api.models import Models
from blockllm.cli import serve
from blockllm.cli.main import app
from blockllm.cluster.streams import Sink
from blockllm.config import EngineSettings, TenantSettings
from blockllm.core import Request
from blockllm.errors import ConfigError, TooManyRequests
from tests.api.test_auth import BODY, make

FILE = "[engine]\nmax_rows = 99\n[tenants.acme]\nweight = 2.5\nmax_pages = 7\n"


def test_serve_gives_tables_of_tenants_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text(FILE)
    seen: list[EngineSettings] = []
    monkeypatch.setattr(serve, "run_server", lambda *given: seen.append(given[3]))
    command = ["serve", "--config", str(tmp_path / "settings.toml"), "--zoo", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert seen[0].tenants == {"acme": TenantSettings(weight=2.5, max_pages=7)}
    assert seen[0].max_rows == 99
    (tmp_path / "settings.toml").write_text(FILE.replace("2.5", "0"))
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError) and len(seen) == 1
    assert "[tenants.acme] weight: got 0, expected a number from 0.001" in str(result.exception)


def test_a_table_for_a_tenant_without_a_key_is_an_error() -> None:
    keys = KeyRing(["acme:k1", "other:k2", "k3"])
    check_tenants(["acme", "other"], keys)
    with pytest.raises(ConfigError, match=r"\[tenants.amce\]: no API key belongs .* `amce:KEY`"):
        check_tenants(["acme", "amce"], keys)
    with pytest.raises(ConfigError, match="no API key"):
        check_tenants(["acme"], KeyRing([]))


def test_a_quota_of_waiting_requests_is_answered_with_429(models: Models) -> None:
    agent, _, client = make(models)

    def refuse(request: Request, sink: Sink) -> None:
        raise TooManyRequests("9 of your requests wait already, your quota; try again later")

    agent.submit = refuse  # type: ignore[method-assign]
    for stream in (False, True):
        headers = {"authorization": "Bearer k1"}
        response = client.post("/v1/completions", json={**BODY, "stream": stream}, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (429, "rate_limit_error")
        assert error["code"] == "rate_limit_exceeded" and "your quota" in error["message"]
        assert int(response.headers["retry-after"]) > 0


def test_no_metric_names_a_tenant(models: Models) -> None:
    _, _, client = make(models)
    headers = {"authorization": "Bearer k1"}
    assert client.post("/v1/completions", json=BODY, headers=headers).status_code == 200
    text = client.get("/metrics", headers=headers).text
    assert "blockllm_" in text and "acme" not in text and "k1" not in text
