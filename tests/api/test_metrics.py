"""The metrics page: what it counts, and that it stays small with many models."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.observability import names
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats, SpanStats
from tests.api.test_auth import KEYS, make

TEXT, TALK = "/v1/completions", "/v1/chat/completions"
BODY = {"model": "base", "prompt": "a", "max_tokens": 1}


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def totals(text: str, metric: names.Metric, label: str) -> dict[str, float]:
    samples = families(text)[metric.name].samples
    return {s.labels[label]: s.value for s in samples if s.name.endswith("_total")}


def refused(client: TestClient, **headers: str) -> dict[str, float]:
    return totals(client.get("/metrics", headers=headers).text, names.REFUSED, "status")


def test_refusals_are_counted_by_status(models: Models):
    _, serving, client = make(models, KeyRing([]), max_body_bytes=1000)
    assert refused(client) == {}
    client.post(TEXT, json=BODY)
    client.post(TEXT, json={**BODY, "n": 99})
    client.post(TEXT, json={**BODY, "n": 99, "stream": True})
    client.post(TEXT, content=b"{", headers={"content-type": "application/json"})
    client.post(TALK, json={**BODY, "messages": [], "stream": True})
    client.post(TEXT, json={**BODY, "model": "nix"})
    client.get("/nix")
    client.get(TEXT)
    client.options(TEXT)
    client.post(TEXT, json={**BODY, "prompt": "a" * 2000})
    client.post(TEXT, content=b"{}", headers={"content-type": "text/plain"})
    client.post(TEXT, json={**BODY, "prompt": [399]})
    serving.draining = True
    client.post(TEXT, json=BODY)
    client.post(TEXT, json={**BODY, "stream": True})  # refused before its first event
    assert client.get("/ready").status_code == 503  # that is an answer, no refusal
    counts = {"400": 4, "404": 2, "405": 2, "413": 1, "415": 1, "500": 1, "503": 2}
    assert refused(client) == counts


def test_wrong_keys_are_counted(models: Models):
    client = make(models, KEYS)[2]
    client.get("/v1/models")
    client.get("/v1/models", headers={"authorization": "Bearer x"})
    assert refused(client, authorization="Bearer k1") == {"401": 2}


def page_of(asked: Iterable[str], num_models: int) -> str:
    """The page of a server with so many models, some of which were asked once."""
    counts = dict.fromkeys([f"model-{i}" for i in range(num_models)], 0)
    counts |= dict.fromkeys(asked, 7)
    spans = tuple(SpanStats(f"span-{i}", ("m",), i == 0, i == 0) for i in range(num_models))
    stats = EngineStats(prompt_tokens=counts, generation_tokens=counts, spans=spans)
    metrics = ServerMetrics(lambda: (stats, True, 0))
    for model in asked:
        timer = metrics.timer(model, 10, time.monotonic() - 1)
        timer.admitted(0.5)
        timer.tokens(2)
        timer.tokens(3)
        timer.end("stop")
    return metrics.render().decode()


def test_models_that_were_not_asked_take_no_room():
    assert len(page_of([], 1000)) < len(page_of([], 2)) + 20
    assert len(page_of([], 1000)) < 20_000


def test_a_model_that_was_asked_takes_a_few_lines():
    few, many = (page_of([f"m-{i:03d}" for i in range(count)], count) for count in (10, 500))
    per_model = (len(many) - len(few)) / 490
    assert per_model < 400  # bytes; a histogram of twenty buckets alone has 1,500
    assert "m-499" in many


def test_what_is_counted_of_one_model():
    page = page_of(["tuned"], 3)
    for metric, expected in (
        (names.PROMPT_TOKENS, 7),
        (names.GENERATION_TOKENS, 7),
        (names.SUCCESS, 1),
        (names.MODEL_FIRST_TOKEN_SECONDS, pytest.approx(1, abs=0.5)),
        (names.MODEL_REQUEST_SECONDS, pytest.approx(1, abs=0.5)),
    ):
        assert totals(page, metric, "model_name") == {"tuned": expected}
    assert totals(page, names.SUCCESS, "finished_reason") == {"stop": 1}
    assert totals(page, names.SPAN_HOPS, "span") == {"span-0": 1}


def test_distributions_are_of_the_whole_server():
    found = families(page_of(["a", "b"], 3))
    histograms = {name: family for name, family in found.items() if family.type == "histogram"}
    assert len(histograms) == 9
    for name, family in histograms.items():
        assert {label for sample in family.samples for label in sample.labels} == {"le"}
        values = {
            s.name.removeprefix(name): s.value for s in family.samples if "le" not in s.labels
        }
        overhead = name in (names.REQUEST_OVERHEAD.name, names.TOKEN_OVERHEAD.name)
        assert values["_count"] == (0 if overhead else 2)
    (total,) = [s for s in found[names.REQUEST_PROMPT_TOKENS.name].samples if "_sum" in s.name]
    assert total.value == 20
