"""Bodies that do not end: their bytes are bounded over all connections, and tenants share them."""

from __future__ import annotations

import pytest

from blockllm.api.bodies import UnreadBodies
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models
from blockllm.errors import Overloaded
from tests.api.test_auth import KEYS, make


def test_one_tenant_fills_half_and_another_finds_room() -> None:
    bodies = UnreadBodies(1000)
    with bodies.of("a") as first, bodies.of("a") as second:
        first(300)
        second(300)
        with pytest.raises(Overloaded, match="600 bytes of unfinished bodies"):
            second(1)
        with bodies.of("b") as other:
            other(350)
            with pytest.raises(Overloaded):
                other(60)
    with bodies.of("a") as again:
        again(500)


def test_without_tenants_everything_may_be_used() -> None:
    with UnreadBodies(1000).of("") as take:
        take(1000)
        with pytest.raises(Overloaded):
            take(1)


@pytest.mark.parametrize("keys", [KEYS, KeyRing([])])
def test_a_body_that_finds_no_room_is_told_to_come_again(
    models: Models, keys: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockllm.api.serving.UNREAD_BODIES", 1e-6)
    client = make(models, keys)[2]
    headers = {"authorization": "Bearer k1"}
    answer = client.post("/v1/completions", json={"prompt": "a" * 50}, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert error["type"] == "server_error" and "unfinished bodies" in error["message"]
