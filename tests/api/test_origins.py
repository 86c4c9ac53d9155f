"""Web pages of other origins, as a browser asks for them."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from blockllm.api.app import make_app
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.origins import admit_pages
from blockllm.config import ServerSettings, load
from blockllm.errors import ConfigError
from tests.api.test_auth import BODY, KEYS, make
from tests.api.test_metrics import refused

PAGE = "https://chat.example.org"
TEXT = "/v1/completions"
ASKS = {"access-control-request-method": "POST"}
ASKS["access-control-request-headers"] = "authorization,content-type,x-stainless-os"


def client_of(models: Models, origins: str, keys: KeyRing = KEYS) -> TestClient:
    _, serving, _ = make(models, keys)
    app = admit_pages(make_app(serving, keys), origins, serving.metrics.refused)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("origins", [PAGE, "*", f"http://localhost:3000 , {PAGE}"])
def test_a_page_that_is_named_may_ask(models: Models, origins: str):
    client = client_of(models, origins)
    asked = client.options(TEXT, headers={"origin": PAGE, **ASKS})
    assert asked.status_code == 200
    allowed = "*" if origins == "*" else PAGE
    assert asked.headers["access-control-allow-origin"] == allowed
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    sent = {"origin": PAGE, "authorization": "Bearer k1"}
    for stream in (False, True):
        answer = client.post(TEXT, json={**BODY, "stream": stream}, headers=sent)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == allowed


def test_a_page_can_read_errors(models: Models):
    client = client_of(models, PAGE)
    for headers, body, status in (
        ({}, BODY, 401),
        ({"authorization": "Bearer k1"}, {**BODY, "n": 99}, 400),
        ({"authorization": "Bearer k1"}, {**BODY, "prompt": [399]}, 500),
    ):
        answer = client.post(TEXT, json=body, headers={"origin": PAGE, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", PAGE + ".evil", PAGE[:-1]])
def test_other_pages_may_not(models: Models, origin: str):
    client = client_of(models, PAGE, KeyRing([]))
    asked = client.options(TEXT, headers={"origin": origin, **ASKS})
    assert asked.status_code == 400
    assert repr(origin) in asked.json()["error"]["message"]
    assert "access-control-allow-origin" not in asked.headers
    assert refused(client) == {"400": 1}
    listing = client.get("/v1/models", headers={"origin": origin})
    assert "access-control-allow-origin" not in listing.headers
    plain = {"origin": origin, "content-type": "text/plain"}
    assert client.post(TEXT, content="{}", headers=plain).status_code == 415


def test_programs_notice_nothing(models: Models):
    client = client_of(models, PAGE, KeyRing([]))
    assert client.post(TEXT, json=BODY).status_code == 200
    assert client.options(TEXT).status_code == 405


def test_without_the_setting_no_page_may_ask(models: Models):
    client = client_of(models, "")
    asked = client.options(TEXT, headers={"origin": PAGE, **ASKS})
    assert asked.status_code == 405
    assert "the setting allowed_origins" in asked.json()["error"]["message"]
    answer = client.get("/v1/models", headers={"origin": PAGE, "authorization": "Bearer k1"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origins", ["example.org", PAGE + "/", "*,*", f"{PAGE},", "", "null"])
def test_what_is_no_origin_ends_the_start(origins: str):
    with pytest.raises(ConfigError, match="or origins such as"):
        load(ServerSettings, "server", None, {"allowed_origins": origins})
    given = load(ServerSettings, "server", None, {"allowed_origins": f"{PAGE}, http://[::1]:3000"})
    assert given.allowed_origins.startswith(PAGE)
