"""Everything that is read, fed with seeds and random changes of them: the campaign's short form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.campaigns import makings
from tools.campaigns.mutate import inputs
from tools.campaigns.oracle import Judge
from tools.campaigns.targets import TARGETS, make

SLOW = {"adapter_folder": 60, "catalogue_bytes": 60, "catalogue_values": 60, "packs": 40}
SLOW["endless_template"] = 8  # each end of a worker takes a third of a second
USUAL = 400
# these raise nothing: what they say is looked at
NEVER_REFUSE = ("packs", "connection", "operation")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makings, "MAX_COMPUTED", 3)  # peft takes a tenth of a second for each
        yield tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_our_own_errors_come_out(scratch: Path, name: str) -> None:
    target = make(name, scratch)
    judge = Judge(target, scratch)
    for data in inputs(target, seed=1, count=SLOW.get(name, USUAL)):
        judge(data)
    assert judge.report()["faults"] == []
    assert judge.refused > 0 or name in NEVER_REFUSE
    assert judge.refused < judge.inputs or name == "endless_template"
