"""A real server process: draining, crashes, disconnects, and what goes wrong at the start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests.api.serving import RunningServer, running
from tests.cluster.fake_engine import CRASH, SLOW

SLOW_BODY = {"model": "base", "prompt": "The quick", "max_tokens": 400, "min_p": SLOW}
PATH = "/v1/completions"


class Background:
    """One request on a thread."""

    def __init__(self, server: RunningServer, **fields: object) -> None:
        self.response: httpx2.Response | None = None
        self._body = {**SLOW_BODY, **fields}
        self._server = server
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.response = httpx2.post(self._server.url + PATH, json=self._body, timeout=30)

    def result(self) -> httpx2.Response:
        self._thread.join(30)
        assert self.response is not None
        return self.response


def wait_for_work(server: RunningServer) -> None:
    server.wait_until("blockllm_num_requests_running", 1)


def test_sigterm_lets_requests_finish(folder: Path):
    with running(folder) as server:
        whole = Background(server, max_tokens=60)
        streamed = Background(server, max_tokens=60, stream=True)
        server.wait_until("blockllm_num_requests_running", 2)
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.1)
        refused = server.post(PATH, {**SLOW_BODY, "max_tokens": 1})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert server.get("/ready").status_code == 503
        assert whole.result().json()["usage"]["completion_tokens"] == 60
        assert streamed.result().text.endswith("data: [DONE]\n\n")
        assert server.wait() == 0


def test_the_drain_timeout_ends_what_is_left(folder: Path):
    with running(folder, drain_timeout=0.2) as server:
        whole, streamed = Background(server), Background(server, stream=True)
        server.wait_until("blockllm_num_requests_running", 2)
        started = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        assert whole.result().status_code == 503
        events = streamed.result().text.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert "shutting down" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
        assert server.wait() == 0
        assert time.monotonic() - started < 5


def test_a_signal_ends_it_at_once_when_it_comes_a_second_after_the_first(folder: Path):
    with running(folder) as server:
        stuck = threading.Thread(target=_ignore_errors, args=(server, SLOW_BODY))
        stuck.start()
        wait_for_work(server)
        agent = server.agent_pid()
        for number in (signal.SIGTERM, signal.SIGINT):  # both at once are one request to end
            os.kill(server.process.pid, number)
        time.sleep(1.1)
        assert server.process.poll() is None
        os.kill(server.process.pid, signal.SIGINT)
        assert server.wait() == 1
        stuck.join()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{agent}/cmdline").exists() and time.monotonic() < deadline:
            if not Path(f"/proc/{agent}/cmdline").read_bytes():  # ended, its status not read
                break
            time.sleep(0.02)
        assert time.monotonic() < deadline


def _ignore_errors(server: RunningServer, body: dict[str, object]) -> None:
    with contextlib.suppress(httpx2.HTTPError):
        httpx2.post(server.url + PATH, json=body, timeout=30)


def test_a_killed_agent_is_replaced(server: RunningServer):
    whole, streamed = Background(server), Background(server, stream=True)
    server.wait_until("blockllm_num_requests_running", 2)
    first = server.agent_pid()
    os.kill(first, signal.SIGKILL)
    response = whole.result()
    assert response.status_code == 503
    assert "restarted" in response.json()["error"]["message"]
    assert "restarted" in streamed.result().text
    server.wait_until("blockllm_agent_up", 1)
    assert server.agent_pid() != first
    assert server.post(PATH, {**SLOW_BODY, "max_tokens": 1}).status_code == 200
    assert server.get("/health").status_code == server.get("/ready").status_code == 200


def test_an_engine_that_breaks_is_replaced(server: RunningServer):
    assert server.post(PATH, {**SLOW_BODY, "min_p": CRASH}).status_code == 503
    server.wait_until("blockllm_agent_up", 1)
    assert server.post(PATH, {**SLOW_BODY, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_requests(server: RunningServer, stream: bool):
    body = json.dumps({**SLOW_BODY, "stream": stream, "n": 3}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_until("blockllm_num_requests_running", 3)
    server.wait_until("blockllm_num_requests_running", 0)
    assert server.metric("blockllm_request_success_total") > 0


def test_readers_that_do_not_read_stall_nobody_else(server: RunningServer):
    body = {**SLOW_BODY, "min_p": 0, "max_tokens": 500, "n": 16, "logprobs": 20, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    port = int(server.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        answer = server.post(PATH, {**SLOW_BODY, "min_p": 0, "max_tokens": 50})
        assert answer.json()["usage"]["completion_tokens"] == 50
        server.wait_until("blockllm_num_requests_running", 0)
        assert server.metric("blockllm_request_success_total") > 0
    assert server.post(PATH, {**SLOW_BODY, "min_p": 0, "max_tokens": 1}).status_code == 200


def test_a_stop_string_frees_its_request(server: RunningServer):
    answer = server.post(PATH, {**SLOW_BODY, "stop": "quick"}).json()
    assert answer["choices"][0]["text"] == "The "
    server.wait_until("blockllm_num_requests_running", 0)


def test_sixty_four_streams_at_once(server: RunningServer):
    async def main() -> list[str]:
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(limits=limits, timeout=30) as client:

            async def one(index: int) -> str:
                body = {"model": "base", "prompt": [index + 10] * 3, "max_tokens": 50}
                body["min_p"] = SLOW if index == 0 else 0
                response = await client.post(server.url + PATH, json={**body, "stream": True})
                return response.text

            return await asyncio.gather(*(one(index) for index in range(64)))

    before = server.cpu_seconds()
    texts = asyncio.run(main())
    num_events = sum(text.count("data: ") for text in texts)
    spent = (server.cpu_seconds() - before) / num_events
    print(f"front end: {num_events} events, {spent * 1e6:.0f} µs of CPU each")
    for text in texts:
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in text


@pytest.mark.parametrize(
    ("zoo", "message"),
    [("too-large", "1 of 2 models would fit"), ("dies", "status 7"), ("breaks", "no such thing")],
)
def test_an_agent_that_cannot_start_ends_the_server_with_its_reason(
    folder: Path, zoo: str, message: str
):
    with running(folder, zoo) as server:
        assert server.wait() == 1
        assert message in server.logged[-1]


def test_a_signal_while_loading_ends_it(folder: Path):
    with running(folder, "slow-start", wait=False) as server:
        deadline = time.monotonic() + 10
        while not server.has_agent() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.end() == 0


def test_the_socket_answers_while_models_are_loaded(folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(folder, "slow-start", wait=False, port=port, api_key="k") as server:
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        deadline = time.monotonic() + 20
        seen = []
        while not seen or not seen[-1]["total"]:
            assert time.monotonic() < deadline, seen
            with contextlib.suppress(httpx2.ConnectError):
                assert client.get("/health").status_code == 200
                ready = client.get("/ready")
                assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
                seen.append(ready.json()["progress"])
        assert seen[-1] == {"activity": "loading bytes of weights", "done": 3, "total": 12}
        assert client.post(PATH, json=SLOW_BODY).status_code == 401
        refused = client.post(PATH, json=SLOW_BODY, headers={"authorization": "Bearer k"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        error = refused.json()["error"]
        assert error["type"] == "server_error"
        assert "loading bytes of weights (3 of 12)" in error["message"]
        assert server.end() == 0


def test_a_port_in_use_is_a_clear_error(folder: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running(folder, port=port) as server:
            assert server.wait() == 1
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in server.logged[-1]


@pytest.mark.parametrize(
    "wrong", [{"host": "no.such.host.invalid"}, {"api_key_file": "/nonexistent"}]
)
def test_wrong_settings_are_clear_errors(folder: Path, wrong: dict[str, object]):
    with running(folder, **wrong) as server:
        assert server.wait() == 1
        assert server.logged[-1].startswith("error: ")
        assert str(next(iter(wrong.values()))) in server.logged[-1]


def test_what_is_printed_and_logged(folder: Path):
    with running(folder, api_key="acme:sesame", log_level="debug") as server:
        secret = {**SLOW_BODY, "prompt": "xyzzy", "max_tokens": 1}
        assert server.post(PATH, secret).status_code == 401
        answer = server.post(PATH, secret, authorization="Bearer sesame")
        assert answer.status_code == 200
        assert server.end() == 0
        stamps, said = zip(*((line[:19], line[20:]) for line in server.said), strict=True)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stamp) for stamp in stamps)
        assert said[0].startswith("weights 0.0 MB, without sharing 0.0 MB (50% saved)")
        assert said[1] == "models: base, tuned, plain"
        assert said[2] == f"ready on {server.url}"
        log = "".join(server.logged)
        assert "sesame" not in log
        assert "xyzzy" not in log
        assert "Traceback" not in log
