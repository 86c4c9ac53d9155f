"""Keys, tenants and salts, in one process: the application over a local stand-in for the agent."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from blockllm.api.app import all_routes, make_app
from blockllm.api.guard import PUBLIC
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.serving import Serving
from blockllm.cluster.streams import Sink
from blockllm.config import ServerSettings
from blockllm.core import Finish, Request, TokenEvent
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats

KEYS = KeyRing(["acme:k1", "other:k2"])
SECRET = "the prompt was: xyzzy"
BODY = {"model": "base", "prompt": "a", "max_tokens": 1}


class InstantAgent:
    """Answers every request with one token, at once."""

    alive = ready = True

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def submit(self, request: Request, sink: Sink) -> None:
        if request.prompt[-1] == 399:
            raise RuntimeError(SECRET)
        self.requests.append(request)
        sink(TokenEvent(request.id, 5, finish=Finish.LENGTH))

    def cancel(self, request_id: str) -> None:
        pass


def make(models: Models, keys: KeyRing = KEYS, **settings: object):
    agent = InstantAgent()
    metrics = ServerMetrics(lambda: (EngineStats(), True, 0))
    values = ServerSettings(**settings)  # type: ignore[arg-type]
    serving = Serving(values, models, agent, metrics)
    return agent, serving, TestClient(make_app(serving, keys), raise_server_exceptions=False)


def test_every_route_needs_a_key_unless_it_is_public(models: Models):
    _, serving, client = make(models)
    seen = set()
    for route in all_routes(serving):
        path = route.path.replace("{name:path}", "base")
        for method in route.methods or ():
            response = client.request(method, path)
            seen.add(path)
            if path in PUBLIC:
                assert response.status_code == 200
                continue
            assert response.status_code == 401, (method, path)
            if method != "HEAD":
                error = response.json()["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert len(seen) >= 9
    assert client.get("/nix").status_code == 401
    assert client.get("/health/").status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer k", "Basic k1", "k1"])
def test_wrong_keys(models: Models, header: str):
    _, _, client = make(models)
    response = client.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def salts(models: Models, keys: KeyRing = KEYS, **settings: object) -> list[str]:
    agent, _, client = make(models, keys, **settings)
    for key in ("k1", "k2"):
        for extra in ({}, {"cache_salt": "x"}):
            headers = {"authorization": f"Bearer {key}"}
            answer = client.post("/v1/completions", json={**BODY, **extra}, headers=headers)
            assert answer.status_code == 200
    return [request.salt for request in agent.requests]


def test_tenants_share_no_prefixes_by_default(models: Models):
    assert len(set(salts(models))) == 4


def test_shared_prefixes_are_a_choice(models: Models):
    first, first_salted, second, second_salted = salts(models, shared_prefixes=True)
    assert first == second == ""
    assert first_salted == second_salted != ""


def test_without_keys_there_is_one_tenant(models: Models):
    first, first_salted, second, second_salted = salts(models, KeyRing([]))
    assert first == second == ""
    assert first_salted == second_salted != ""


def test_an_unexpected_error_is_not_shown_and_its_text_not_logged(
    models: Models, caplog: pytest.LogCaptureFixture
):
    _, _, client = make(models, KeyRing([]))
    response = client.post("/v1/completions", json={**BODY, "prompt": [399]})
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], "xyzzy" in error["message"]) == ("server_error", False)
    assert "RuntimeError" in caplog.text
    assert "xyzzy" not in caplog.text


def test_a_draining_server_refuses(models: Models):
    _, serving, client = make(models, KeyRing([]))
    serving.draining = True
    for path, send in (("/ready", None), ("/v1/completions", BODY)):
        response = client.post(path, json=send) if send else client.get(path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
    stream = client.post("/v1/completions", json={**BODY, "stream": True})
    assert stream.status_code == 503
    assert client.get("/health").status_code == 200
