"""Requests that no route answers, and what listings do not tell."""

from __future__ import annotations

import msgspec
import pytest

from blockllm.api.keys import KeyRing
from blockllm.api.models import Models, ServedModel
from blockllm.api.text import ModelText
from blockllm.api.text_calls import TextContent
from blockllm.core import ModelCard
from tests.api.test_auth import KEYS, make


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/v1/x", "/"]
)
def test_an_unknown_route_names_those_that_exist(models: Models, path: str):
    answer = make(models, KeyRing([]))[2].post(path, json={"model": "base", "input": "a"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (404, "not_found_error", None)
    assert error["message"].startswith(f"POST {path}: not served; this server has POST /v1/chat/")
    assert "GET /v1/models/{name}" in error["message"]


def test_a_wrong_method_names_the_right_one(models: Models):
    answer = make(models, KeyRing([]))[2].put("/v1/completions", json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"].endswith("wrong method, allowed: POST")


@pytest.mark.parametrize("keys", [KEYS, KeyRing([])])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nix"])
def test_browsers_that_ask_for_permission_are_told_why_not(
    models: Models, path: str, keys: KeyRing
):
    headers = {"origin": "http://page.example", "access-control-request-method": "POST"}
    answer = make(models, keys)[2].options(path, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert error["type"] == "invalid_request_error"
    assert "when the setting allowed_origins names that origin" in error["message"]


def test_a_slash_behind_the_listing_changes_nothing(models: Models):
    for served in (models, Models([models.find("base")])):
        client = make(served, KeyRing([]))[2]
        assert client.get("/v1/models/").content == client.get("/v1/models").content


def test_listings_do_not_show_where_weights_came_from():
    path = "/srv/secret/checkpoints/run-7"
    cards = [
        ModelCard("base", "full", "llama", root=path),
        ModelCard("tuned", "lora", "llama", parent="base", root=path),
        ModelCard("small", "compressed", "llama", parent="base", root=path),
    ]
    served = [
        ServedModel(card, 8, "fp_x", ModelText(TextContent({}, "llama"), None, {}), 0)
        for card in cards
    ]
    answer = make(Models(served), KeyRing([]))[2].get("/v1/models")
    assert path not in answer.text
    roots = {entry["id"]: entry["root"] for entry in msgspec.json.decode(answer.content)["data"]}
    assert roots == {"base": "base", "tuned": "base", "small": "base"}
