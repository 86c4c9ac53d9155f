"""Every type of adapter that the installed peft knows is read, or refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.kinds import REFUSED, choose_kind, supported_types

TYPES = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING)


def choose(folder: Path, kind: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    choose_kind(folder)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_read_or_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    assert (kind in supported_types()) != (kind in REFUSED)
    if kind in REFUSED:
        with pytest.raises(UnsupportedModel, match=f"{kind} is not supported: ") as caught:
            choose(tmp_path, kind)
        assert REFUSED[kind] in str(caught.value)
    else:
        choose(tmp_path, kind)


def test_what_peft_does_not_write_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"MAGIC is not supported \(supported: ADALORA, "):
        choose(tmp_path, "MAGIC")


def test_nothing_is_decided_that_peft_does_not_write() -> None:
    """BitFit has no type of peft's, its folder is in docs/deltas.md; Bone is what MiSS was."""
    assert {*supported_types(), *REFUSED} - set(TYPES) == {"BITFIT", "BONE"}
