"""A few faults of the campaign, on a real server under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tools.campaigns.faults.run import campaign


def test_nothing_is_lost_but_what_was_in_flight(tmp_path: Path) -> None:
    names = ["text worker killed", "clients that do not send, read or stay", "agent killed"]
    found = asyncio.run(campaign(3, 5, names, tmp_path))
    assert found["wrong"] == []
    assert found["answers"]["right"] > 20
    assert found["answers"]["told: 503 server_error"] > 0
