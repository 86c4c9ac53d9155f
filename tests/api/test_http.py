"""Everything about HTTP that the openai client does not show."""

from __future__ import annotations

import contextlib
import json
import socket

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from blockllm.api import wire
from blockllm.api.fields import REFUSED
from blockllm.observability import names
from tests.api.serving import RunningServer

COMPLETION = {"model": "base", "prompt": "The quick", "max_tokens": 2}
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT, TALK = "/v1/completions", "/v1/chat/completions"


def error_of(response: httpx2.Response) -> dict[str, object]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    ("path", "field", "value", "param"),
    [
        (TEXT, "n", 17, "n"),
        (TEXT, "n", 0, "n"),
        (TEXT, "n", "x", "n"),
        (TEXT, "best_of", 2, "best_of"),
        (TEXT, "max_tokens", 0, "max_tokens"),
        (TEXT, "max_tokens", 1.5, "max_tokens"),
        (TEXT, "max_tokens", "2", "max_tokens"),
        (TEXT, "stream_options", {"include_usage": 1}, "stream_options.include_usage"),
        (TEXT, "min_tokens", 3, "min_tokens"),
        (TEXT, "temperature", 2.5, "temperature"),
        (TEXT, "temperature", -1, "temperature"),
        (TEXT, "top_p", -0.1, "top_p"),
        (TEXT, "top_k", -2, "top_k"),
        (TEXT, "min_p", 1.5, "min_p"),
        (TEXT, "presence_penalty", 3, "presence_penalty"),
        (TEXT, "frequency_penalty", -3, "frequency_penalty"),
        (TEXT, "repetition_penalty", 0, "repetition_penalty"),
        (TEXT, "logit_bias", {"5": 101}, "logit_bias"),
        (TEXT, "logit_bias", {"x": 1}, "logit_bias"),
        (TEXT, "logit_bias", {str(i): 0 for i in range(2000)}, "logit_bias"),
        (TEXT, "seed", 2**63, "seed"),
        (TEXT, "top_k", 10**400, "top_k"),
        (TEXT, "temperature", 10**400, "temperature"),
        (TEXT, "max_tokens", 10**400, "max_tokens"),
        (TEXT, "prompt", [10**400], "prompt"),
        (TEXT, "stop", ["x"] * 17, "stop"),
        (TEXT, "stop", "x" * 2000, "stop"),
        (TEXT, "stop_token_ids", [-1], "stop_token_ids"),
        (TEXT, "logprobs", 21, "logprobs"),
        (TEXT, "echo", True, "echo"),
        (TEXT, "suffix", "x", "suffix"),
        (TEXT, "prompt", [], "prompt"),
        (TEXT, "prompt", [[]], "prompt"),
        (TEXT, "prompt", [1, "a"], "prompt"),
        (TEXT, "prompt", [-1], "prompt"),
        (TEXT, "prompt", ["a"] * 65, "prompt"),
        (TEXT, "prompt", "a " * 2000, "prompt"),
        (TEXT, "prompt", None, "prompt"),
        (TEXT, "cache_salt", "x" * 300, "cache_salt"),
        (TALK, "messages", [], "messages"),
        (TALK, "messages", [{"content": "a"}], "messages[0].role"),
        (TALK, "messages", [{"role": "user", "content": 5}], "messages[0].content"),
        (
            TALK,
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content",
        ),
        (TALK, "tools", [{"type": "function"}], "tools"),
        (TALK, "response_format", {"type": "json_object"}, "response_format"),
        (TALK, "top_logprobs", 2, "top_logprobs"),
        (TALK, "max_completion_tokens", 10**6, "max_completion_tokens"),
        (TALK, "chat_template", "{{ 1 }}", "chat_template"),
        (TALK, "chat_template_kwargs", {"messages": []}, "chat_template_kwargs"),
    ],
)
def test_every_limit_names_its_field(
    server: RunningServer, path: str, field: str, value: object, param: str
):
    body = {**(COMPLETION if path == TEXT else CHAT), field: value}
    response = server.post(path, body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert str(error["message"]).startswith(param.partition("[")[0])


def test_harmless_extra_and_empty_fields_are_ignored(server: RunningServer):
    extra = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "user": "u"}
    extra |= {"store": True, "metadata": {}, "best_of": 1, "n": None, "stop": None, "seed": -5}
    assert server.post(TALK, {**CHAT, **extra}).status_code == 200


def test_text_parts_are_joined(server: RunningServer):
    parts = [{"type": "text", "text": "The"}, {"type": "text", "text": "quick"}]
    message = {"role": "user", "content": parts}
    answer = server.post(TALK, {**CHAT, "messages": [message], "max_tokens": 6}).json()
    assert answer["choices"][0]["message"]["content"].startswith("The\nquick")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nix", 404, "not_found_error"),
        ("GET", "/v1/completions/", 404, "not_found_error"),
        ("GET", TEXT, 405, "invalid_request_error"),
        ("DELETE", "/v1/models/base", 405, "invalid_request_error"),
    ],
)
def test_wrong_routes_and_methods(
    server: RunningServer, method: str, path: str, status: int, kind: str
):
    response = server.client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["type"] == kind


def test_bodies_that_are_not_json_or_too_large(server: RunningServer):
    plain = server.client.post(TEXT, content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    json_type = {"content-type": "application/json"}
    for content in (b"", b"{", b"\xff\xfe", b"[]", b"[" * 50_000, b'{"prompt":"\\ud800"}'):
        assert server.client.post(TEXT, content=content, headers=json_type).status_code == 400
    large = server.client.post(TEXT, content=b"x" * 100_001, headers=json_type)
    assert large.status_code == 413
    assert "allowed 100000" in str(error_of(large)["message"])

    def chunks():
        for _ in range(20):
            yield b" " * 10_000

    assert server.client.post(TEXT, content=chunks(), headers=json_type).status_code == 413


def test_a_head_without_end_is_refused(server: RunningServer):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nx: ")
        with contextlib.suppress(OSError):
            for _ in range(64):
                client.sendall(b"y" * 4096)
        received = b""
        with contextlib.suppress(OSError):
            received = client.recv(4096)
    assert received == b"" or received.startswith(b"HTTP/1.1 400")
    assert server.get("/health", x="y" * 30_000).status_code == 200


def test_a_lone_surrogate_is_a_bad_request(server: RunningServer):
    content = b'{"model":"base","prompt":"\\ud800"}'
    headers = {"content-type": "application/json"}
    response = server.client.post(TEXT, content=content, headers=headers)
    assert response.status_code == 400


def test_sse_framing_and_usage(server: RunningServer):
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = server.post(TEXT, {**COMPLETION, "stream": True, "stream_options": options})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"]["prompt_tokens"] == 3 for chunk in chunks)
    plain = server.post(TEXT, {**COMPLETION, "stream": True})
    assert "usage" not in plain.text


def test_tokenize_and_back(server: RunningServer):
    answer = server.post("/tokenize", {"model": "base", "prompt": "The", "return_token_strs": True})
    body = answer.json()
    assert body["count"] == len(body["tokens"]) == 2
    assert body["token_strs"] == ["<s>", "The"]
    assert body["max_model_len"] == 512
    plain = {"model": "base", "prompt": "The", "add_special_tokens": False}
    assert server.post("/tokenize", plain).json()["tokens"] == body["tokens"][1:]
    back = server.post("/detokenize", {"model": "base", "tokens": body["tokens"]})
    assert back.json() == {"prompt": "<s>The"}
    chat = {"model": "base", "messages": CHAT["messages"]}
    tokens = server.post("/tokenize", chat).json()["tokens"]
    text = server.post("/detokenize", {"model": "base", "tokens": tokens}).json()["prompt"]
    assert text == "<s><|user|>hi\n<|assistant|>"
    for bad in ({"model": "base"}, {"prompt": "a"}, {"model": "base", "prompt": "", **chat}):
        assert server.post("/tokenize", bad).status_code == 400
    assert server.post("/detokenize", {"model": "base", "tokens": [-1]}).status_code == 400


def test_a_refusal_of_the_engine_is_not_counted_as_an_error(server: RunningServer):
    before = server.metric("blockllm_request_success_total")
    refused = server.post(TEXT, {"model": "base", "prompt": [10**9], "n": 2})
    assert refused.status_code == 400
    assert server.metric("blockllm_request_success_total") == before


def test_health_and_metrics(server: RunningServer):
    assert server.get("/health").status_code == 200
    assert server.get("/ready").status_code == 200
    server.post(TEXT, COMPLETION)
    families = {f.name: f for f in text_string_to_metric_families(server.get("/metrics").text)}
    declared = {value.name for value in vars(names).values() if isinstance(value, names.Metric)}
    assert declared <= set(families)
    labels = {s.labels["model_name"] for s in families[names.SUCCESS.name].samples}
    assert "base" in labels <= {"base", "tuned", "plain"}
    assert server.metric("blockllm_request_success_total") >= 1
    assert server.metric("blockllm_pages") == 10
    assert server.metric("blockllm_agent_up") == 1
    assert server.metric("blockllm_weight_bytes_unshared") == 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {*wire.ChatRequest.__struct_fields__, *wire.CompletionRequest.__struct_fields__, *REFUSED}
    - {"model"}
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from([TEXT, TALK, "/tokenize", "/detokenize"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
)
def test_no_body_is_an_internal_error(server: RunningServer, path: str, fields: dict[str, object]):
    base = {**COMPLETION, **CHAT} if path == TALK else COMPLETION
    content = json.dumps({**base, **fields}).encode()
    headers = {"content-type": "application/json"}
    response = server.client.post(path, content=content, headers=headers)
    # min_p steers the fake engine, so 500 and 503 may be its own doing
    if fields.get("min_p") not in (0.5, 0.75):
        assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error_of(response)
