"""The document describes every route, every field of a body, and the bounds that are checked."""

from __future__ import annotations

from typing import Any

import msgspec

from blockllm.api.fields import REFUSED
from blockllm.api.guard import PUBLIC
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.api.wire import ChatRequest, CompletionRequest
from tests.api.test_auth import KEYS, make


def read(models: Models) -> dict[str, Any]:
    answer = make(models, KeyRing([]))[2].get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def test_every_route_is_described_and_nothing_else(models: Models):
    client = make(models, KeyRing([]))[2]
    paths = read(models)["paths"]
    described = {
        f"{method.upper()} {path}" for path, methods in paths.items() for method in methods
    }
    message = client.get("/nix").json()["error"]["message"]
    assert described == set(message.partition("this server has ")[2].split(", "))
    for path, methods in paths.items():
        for operation in methods.values():
            assert (operation["security"] == []) == (path in PUBLIC)


def test_it_needs_a_key_where_there_are_keys(models: Models):
    assert make(models, KEYS)[2].get("/openapi.json").status_code == 401


def test_fields_and_bounds_are_those_that_bodies_are_read_with(models: Models):
    schemas = read(models)["components"]["schemas"]
    for kind in (ChatRequest, CompletionRequest):
        known = {field.name for field in msgspec.structs.fields(kind)}
        assert set(schemas[kind.__name__]["properties"]) == known | set(REFUSED)
    chat = schemas["ChatRequest"]["properties"]
    assert chat["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert chat["n"]["anyOf"][0]["maximum"] == 16
    assert chat["tool_choice"] == {"enum": ["none", "auto", None]}
    whether = {"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": True}
    assert chat["add_generation_prompt"] == whether
    assert chat["echo"] == {"enum": [False, 0, None]} and chat["tools"] == {}
    assert chat["messages"]["maxItems"] == 4096
