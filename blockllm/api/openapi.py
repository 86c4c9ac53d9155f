"""The OpenAPI document of the server, made of the structs that read bodies and write answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from blockllm import __version__
from blockllm.api import answers, limits, wire
from blockllm.api.fields import REFUSED, Refused
from blockllm.api.guard import PUBLIC
from blockllm.config import ServerSettings

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/{name}"
_KEY = "apiKey"
_ERROR = {"schema": {"$ref": _REFERENCE.format(name="ErrorAnswer")}}

# clients' other spelling of a value that says nothing
_EQUAL: dict[str, tuple[object, ...]] = {"False": (0,), "True": (1,), "0": (False,), "1": (True,)}


class Operation(NamedTuple):
    """What a route takes and gives; its answer is a stream of `event`s where that is asked for."""

    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    event: type[msgspec.Struct] | None = None


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation", wire.ChatRequest, answers.ChatAnswer, answers.ChatChunk
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue a text or token ids",
        wire.CompletionRequest,
        answers.CompletionAnswer,
        answers.CompletionAnswer,
    ),
    ("GET", "/v1/models"): Operation("The served models", answer=answers.ModelList),
    ("GET", "/v1/models/{name}"): Operation("One served model", answer=answers.ModelEntry),
    ("POST", "/tokenize"): Operation(
        "Token ids of a text or a conversation", wire.TokenizeRequest, answers.TokenizeAnswer
    ),
    ("POST", "/detokenize"): Operation(
        "Text of token ids", wire.DetokenizeRequest, answers.DetokenizeAnswer
    ),
    ("GET", "/health"): Operation("Whether the agent process runs"),
    ("GET", "/ready"): Operation("Whether requests are taken"),
    ("GET", "/metrics"): Operation("Metrics for Prometheus"),
    ("GET", "/openapi.json"): Operation("This document"),
}


def document(settings: ServerSettings) -> Schema:
    """The whole document, of version 3.1; bounds that settings decide are theirs."""
    bodies = {operation.body for operation in OPERATIONS.values() if operation.body}
    kinds: set[type[msgspec.Struct]] = {*bodies, answers.ErrorAnswer}
    for operation in OPERATIONS.values():
        kinds |= {kind for kind in (operation.answer, operation.event) if kind}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    for name, bounds in _bounds(settings).items():
        for kind in bodies:
            properties = components[kind.__name__]["properties"]
            if name in properties:
                _bound(properties[name], bounds)
    for body in (wire.ChatRequest, wire.CompletionRequest):
        properties = components[body.__name__]["properties"]
        for name, rule in REFUSED.items():
            properties.setdefault(name, _neutral(rule))
    for kind in bodies:
        _allow_null(components[kind.__name__])
    paths: dict[str, Schema] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _describe(path, operation)
    scheme = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "blockllm", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {_KEY: scheme}},
    }


def _allow_null(body: Schema) -> None:
    """A null is a field that is not given."""
    for name, schema in body["properties"].items():
        parts = schema.get("anyOf", [schema])
        types = [part.get("type") for part in parts]
        if name not in body["required"] and "null" not in types and any(types):
            default = {"default": schema.pop("default")} if "default" in schema else {}
            body["properties"][name] = {"anyOf": [*parts, {"type": "null"}], **default}


def _neutral(rule: Refused) -> Schema:
    """What a field that is not served may be: anything where another field switches it off."""
    if rule.unless is not None:
        return {}
    same = [other for value in rule.neutral for other in _EQUAL.get(str(value), ())]
    return {"enum": [*rule.neutral, *same, None]}


def _bounds(settings: ServerSettings) -> dict[str, Schema]:
    """What JSON Schema says of each field beside its type."""
    found: dict[str, Schema] = {
        field: {"minimum": low, "maximum": high} for field, (low, high) in limits.BOUNDS.items()
    }
    found |= {
        "n": {"minimum": 1, "maximum": settings.max_choices},
        "max_completion_tokens": {"minimum": 1},
        "stop": {"maxItems": settings.max_stop, "maxLength": limits.MAX_STOP_CHARACTERS},
        "stop_token_ids": {"maxItems": limits.MAX_STOP_IDS},
        "logit_bias": {"maxProperties": settings.max_logit_bias},
        "top_logprobs": {"minimum": 0, "maximum": settings.max_logprobs},
        "logprobs": {"minimum": 0, "maximum": settings.max_logprobs},
        "messages": {"minItems": 1, "maxItems": limits.MAX_MESSAGES},
        "prompt": {"maxItems": settings.max_prompts},
        "cache_salt": {"maxLength": limits.MAX_SALT},
    }
    return found


_BELONGS = {
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "maxLength": ("string",),
    "minItems": ("array",),
    "maxItems": ("array",),
    "maxProperties": ("object",),
}


def _bound(schema: Schema, bounds: Schema) -> None:
    """Add the bounds to those alternatives of the field that they are about."""
    for part in schema.get("anyOf", [schema]):
        about = {key: value for key, value in bounds.items() if part.get("type") in _BELONGS[key]}
        part.update(about)


def _describe(path: str, operation: Operation) -> Schema:
    content: dict[str, Schema] = {}
    if operation.answer:
        content["application/json"] = {"schema": _refer(operation.answer)}
    elif path not in PUBLIC:
        kind = "application/json" if path.endswith(".json") else "text/plain"
        content[kind] = {"schema": {"type": "object" if path.endswith(".json") else "string"}}
    if operation.event:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"description": "OpenAI's error object", "content": {"application/json": _ERROR}}
    described: Schema = {
        "summary": operation.summary,
        "responses": {"200": {"description": "done", "content": content}, "default": error},
        "security": [] if path in PUBLIC else [{_KEY: []}, {}],
    }
    if operation.body:
        body = {"application/json": {"schema": _refer(operation.body)}}
        described["requestBody"] = {"required": True, "content": body}
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        described["parameters"] = [name]
    return described


def _refer(kind: type) -> Schema:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}
