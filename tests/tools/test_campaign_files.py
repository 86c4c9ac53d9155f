"""Everything that is read, fed with seeds and random changes of them: the campaign's short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.campaigns.mutate import inputs
from tools.campaigns.oracle import Judge
from tools.campaigns.targets import TARGETS, make

SLOW = {"adapter_folder": 60, "catalogue_bytes": 60, "catalogue_values": 60, "packs": 40}
USUAL = 400
JUDGE_ANSWERS = (
    "packs",
    "connection",
    "operation",
)  # these raise nothing: what they say is looked at


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_our_own_errors_come_out(scratch: Path, name: str) -> None:
    target = make(name, scratch)
    judge = Judge(target, scratch)
    for data in inputs(target, seed=1, count=SLOW.get(name, USUAL)):
        judge(data)
    assert judge.report()["faults"] == []
    assert 0 < judge.refused < judge.inputs or name in JUDGE_ANSWERS
