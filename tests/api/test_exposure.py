"""What a running server shows: every route asks for a key, every socket stays on this machine."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from blockllm.api.guard import PUBLIC
from tests.api.serving import RunningServer, running

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE")
ELSEWHERE = ("/", "/v1", "/docs", "/v1/files", "//v1/models", "/v1/models/../../metrics", "/%2e/")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("exposed"), api_key="acme:sesame") as server:
        yield server


def test_every_route_needs_a_key_unless_it_is_public(server: RunningServer) -> None:
    key = {"authorization": "Bearer sesame"}
    document = server.get("/openapi.json", **key).json()
    paths = [path.replace("{name}", "base") for path in document["paths"]]
    assert len(paths) >= 10 and set(paths) >= PUBLIC
    for path in (*paths, *ELSEWHERE):
        for method in METHODS:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
                answer = server.client.request(method, path, headers=headers)
                if path in PUBLIC:
                    assert answer.status_code in (200, 405), (method, path)
                else:
                    assert answer.status_code == 401, (method, path)
                    assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
    for method, expected in (("GET", 200), ("POST", 405)):
        assert server.client.request(method, "/v1/models", headers=key).status_code == expected


def test_every_listening_socket_stays_on_this_machine(server: RunningServer) -> None:
    whole = psutil.Process(server.process.pid)
    processes = [whole, *whole.children(recursive=True)]
    assert len(processes) >= 3, "the server, its agent and its text workers"
    port = int(server.url.rpartition(":")[2])
    listening, paths = [], set()
    for process in processes:
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN or (not found.raddr and found.laddr):
                listening.append(found.laddr)
        paths |= {found.laddr for found in process.net_connections("unix") if found.laddr}
    assert [address.port for address in listening] == [port]
    assert all(ip_address(address.ip).is_loopback for address in listening)
    assert paths, "the link between server and agent"
    for name in paths:
        folder = Path(name).parent.stat()
        assert stat.S_IMODE(folder.st_mode) == 0o700, f"others can reach {name}"
