"""Answers that no sound worker gives: its memory may be damaged by what it ran."""

from __future__ import annotations

import msgspec
import pytest

from blockllm.errors import WorkerDied
from blockllm.workers.call import Answer, read_answer, result_of
from tests.workers.tasks import call


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'{"fault": {"kind": "x"}}'])
def test_what_is_no_answer_is_told_apart(data: bytes):
    with pytest.raises(ValueError, match="not an answer"):
        read_answer(data)


@pytest.mark.parametrize("result", [b'"a"', b"null", b"1.5", b"\xff", b"1 2"])
def test_a_result_of_another_type_is_the_workers_fault(result: bytes):
    with pytest.raises(WorkerDied, match="double"):
        result_of(Answer(msgspec.Raw(result)), call("double"))
