"""The pure parts of the front end's measurement: quantiles, differences, traffic."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from blockllm.core import Finish, Request, Sampling
from blockllm.observability import names
from blockllm.observability.metrics import OVERHEAD_SECONDS, ServerMetrics
from blockllm.observability.stats import EngineStats
from tools.studies.frontend_client import ClientLoad, Connection, request_bytes
from tools.studies.frontend_standin import PacedEngine
from tools.studies.measure_frontend import difference, quantile, read_buckets, stages_of

INF = float("inf")


def test_quantiles_are_linear_inside_a_bucket():
    buckets = {1.0: 0.0, 2.0: 10.0, 4.0: 20.0, INF: 20.0}
    assert quantile(buckets, 0.25) == 1.5
    assert quantile(buckets, 0.5) == 2.0
    assert quantile(buckets, 0.75) == 3.0
    assert quantile(buckets, 1.0) == 4.0


def test_quantiles_without_observations_or_above_all_bounds():
    assert math.isnan(quantile({}, 0.5))
    assert math.isnan(quantile({1.0: 0.0, INF: 0.0}, 0.5))
    assert quantile({1.0: 0.0, INF: 3.0}, 0.5) == 1.0


@given(st.lists(st.floats(0, 4.9), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(seconds: list[float], share: float):
    metrics = ServerMetrics(lambda: (EngineStats(), True, 0))
    for value in seconds:
        metrics.token_overhead.observe(value)
    buckets = read_buckets(metrics.render().decode(), names.TOKEN_OVERHEAD.name)
    bounds = (*OVERHEAD_SECONDS, INF)
    assert buckets == {bound: sum(value <= bound for value in seconds) for bound in bounds}
    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    upper = min(bound for bound in buckets if bound >= exact)
    lower = max((bound for bound in buckets if bound < upper), default=0.0)
    assert lower <= quantile(buckets, share) <= upper


def test_buckets_are_read_from_a_metrics_page():
    text = (
        f"# TYPE {names.TOKEN_OVERHEAD.name} histogram\n"
        f'{names.TOKEN_OVERHEAD.name}_bucket{{le="0.1"}} 2.0\n'
        f'{names.TOKEN_OVERHEAD.name}_bucket{{le="+Inf"}} 3.0\n'
        f"{names.TOKEN_OVERHEAD.name}_count 3.0\n"
        f"{names.TOKEN_OVERHEAD.name}_sum 1.0\n"
    )
    after = read_buckets(text, names.TOKEN_OVERHEAD.name)
    assert after == {0.1: 2.0, INF: 3.0}
    assert difference(after, {0.1: 1.0}) == {0.1: 1.0, INF: 3.0}


def test_stages_add_up_to_the_cpu_time():
    seen = {"seconds": {"a": 1.0, "b": 2.0}, "calls": {"a": 10, "b": 1}, "cpu_seconds": 4.0}
    stages = stages_of(seen)
    assert sum(stage.share for stage in stages) == 1.0
    assert stages[0].name == "b"
    assert stages[-1].microseconds in (1e5, 1e6)


def test_streams_have_different_lengths_unless_in_step():
    assert {ClientLoad(8, 128, in_step=True).length(i) for i in range(8)} == {128}
    lengths = [ClientLoad(64, 128).length(i) for i in range(64)]
    assert len(set(lengths)) > 32 and min(lengths) >= 96 and max(lengths) <= 160
    assert ClientLoad(4, 1).length(3) == 1


class FakeTransport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


def connect(load: ClientLoad) -> tuple[Connection, FakeTransport]:
    transport = FakeTransport()
    connection = Connection(request_bytes("m", load, 4), 4, load.stream)
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport


@given(st.integers(1, 30))
def test_a_stream_is_counted_whatever_the_cuts(size: int):
    connection, transport = connect(ClientLoad(1, 4))
    event = b"data: {}\n\n"
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + event * 3 + b"data: [DONE]\n\n" + b"\r\n0\r\n\r\n"
    connection.data_received(answer[:20])
    for start in range(20, len(answer), size):
        connection.data_received(answer[start : start + size])
    assert connection.requests == 1
    assert len(transport.written) == 2
    assert connection.events <= 4


def test_a_plain_answer_ends_by_its_length_and_a_refusal_is_a_problem():
    connection, transport = connect(ClientLoad(1, 1, stream=False))
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}")
    assert connection.requests == 0
    connection.data_received(b"  ")
    assert connection.requests == 1
    connection.data_received(b"HTTP/1.1 503 no\r\n\r\n")
    assert transport.closed and "503" in connection.problem


def test_the_request_is_valid_http():
    head, _, body = request_bytes("m", ClientLoad(1, 4), 7).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["max_tokens"] == 7


def test_the_stand_in_gives_each_request_its_tokens():
    engine = PacedEngine(0.0)
    engine.submit(Request("a", "m", (1,), Sampling(max_tokens=3)))
    engine.submit(Request("b", "m", (1,), Sampling(max_tokens=1)))
    seen = []
    while engine.has_work:
        seen += engine.step()
    assert [e.request for e in seen] == ["a", "b", "a", "a"]
    assert [e.finish for e in seen] == [None, Finish.LENGTH, None, Finish.LENGTH]
    engine.check_books()
