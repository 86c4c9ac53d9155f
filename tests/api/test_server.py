"""What a server makes of its settings before it serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blockllm.api.server import Server
from blockllm.cluster.agent_main import AgentOptions
from blockllm.config import ServerSettings
from blockllm.errors import ConfigError


@contextmanager
def listening(**settings: object) -> Iterator[Server]:
    """A server that has taken its port and does not run."""
    values = ServerSettings(port=0, **settings)  # type: ignore[arg-type]
    server = Server(values, lambda: None, None, AgentOptions(""), lambda *words: None)  # type: ignore[arg-type, return-value]
    try:
        yield server
    finally:
        server._socket.close()


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("0.0.0.0", "k", False),
    ],
)
def test_a_server_that_is_open_to_others_without_keys_says_so(
    host: str, keys: str, warns: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    with listening(host=host, api_key=keys):
        assert (f"every machine that reaches {host} can use this server" in caplog.text) == warns


@pytest.mark.parametrize("host", ["a" * 64 + ".org", "a..b", "a\0b", "::g", "1.2.3.4.5"])
def test_a_host_that_is_none_is_an_error(host: str):
    with pytest.raises(ConfigError, match="cannot listen on"), listening(host=host):
        pass


@pytest.mark.parametrize(("given", "seconds"), [({}, 75), ({"keep_alive": 5}, 5)])
def test_idle_connections_stay_open_as_long_as_the_setting_says(
    given: dict[str, int], seconds: int
):
    with listening(**given) as server:
        config = server._make_http(lambda scope, receive, send: None).config  # type: ignore[arg-type, return-value]
        assert config.timeout_keep_alive == seconds
