"""The campaigns' own parts: faults are noticed, time jumps, answers are read strictly."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockllm.errors import BadRequest
from tools.campaigns import oracle
from tools.campaigns.answers import Answer, check_answer, read_answers, requests_of
from tools.campaigns.draws import Draws, edited, flipped
from tools.campaigns.loop import VirtualLoop
from tools.campaigns.oracle import Judge, Target
from tools.campaigns.schema_values import Values

PAIR = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"


def test_a_judge_keeps_each_kind_of_fault_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(data: bytes) -> None:
        match data[:1]:
            case b"o":
                raise BadRequest("ours")
            case b"s":
                start = time.process_time()
                while time.process_time() < start + 0.03:
                    pass
            case b"k":
                raise KeyError(data)

    monkeypatch.setattr(oracle, "MAX_SECONDS", 0.02)
    judge = Judge(Target((b"",), run), tmp_path)
    for data in (b"", b"o", b"s", b"kaa", b"kb"):
        judge(data)
    report = judge.report()
    assert (report["inputs"], report["refused"]) == (5, 1)
    assert [(fault.what[:8], fault.data, fault.count) for fault in judge.faults.values()] == [
        ("took mor", b"s", 1),
        ("KeyError", b"kb", 2),
    ]


WRITER = """
import os, sys
from pathlib import Path
from tools.campaigns.oracle import Judge, Target
scratch = Path(sys.argv[1])
def run(data):
    (scratch / "inside").write_bytes(data)
    if data:
        os.mkdir(scratch.parent / "outside")
judge = Judge(Target((b"",), run), scratch)
judge.watch()
judge(b"")
print(len(judge.faults))
judge(b"a")
print(*(fault.what for fault in judge.faults.values()))
"""


def test_what_is_written_outside_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "scratch")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, what = done.stdout.splitlines()
    assert count == "0" and what.startswith("os.mkdir outside")


def test_hours_pass_in_no_time() -> None:
    async def wait() -> int:
        await asyncio.sleep(7200)
        return await asyncio.to_thread(len, "ab")

    start = time.monotonic()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(wait()) == 2
        assert runner.get_loop().time() >= 7200
    assert time.monotonic() - start < 5


def test_answers_are_read_strictly() -> None:
    (one, two), rest = read_answers(b"HTTP/1.1 100 Continue\r\n\r\n" + PAIR + PAIR + PAIR[:-1])
    assert one == two == Answer(200, {b"content-length": b"1"}, b"a", False)
    assert rest == PAIR[:-1]
    for wrong in (b"HTTP/1.0 200 OK\r\n\r\n", PAIR.replace(b"\r\n\r\n", b"\nx: y\r\n\r\n")):
        with pytest.raises(ValueError):
            read_answers(wrong)
    with pytest.raises(AssertionError, match="500"):
        check_answer(Answer(500, {}, b"", False))
    with pytest.raises(AssertionError):
        check_answer(Answer(400, {b"content-type": b"text/plain"}, b"no", True))


def test_another_parser_tells_requests_from_what_it_refuses() -> None:
    one = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"
    assert requests_of(one + one.replace(b"/a", b"/b")) == [("GET", b"/a"), ("GET", b"/b")]
    assert requests_of(one.replace(b"host", b"ho st")) is None


def test_edits_leave_the_intact_document_as_it_is() -> None:
    document = {"a": [1, {"b": "c"}], "d": None}
    changed = [edited(document, Draws(bytes([i, 3, 1, i, 5, 7, 9, i]))) for i in range(64)]
    assert document == {"a": [1, {"b": "c"}], "d": None}
    assert sum(other != document for other in changed) > 32
    assert flipped(b"abc", Draws(b"")) == b"abc"


SCHEMA = {
    "type": "object",
    "required": ["a", "b"],
    "properties": {
        "a": {"type": "integer", "minimum": 2, "maximum": 5},
        "b": {"anyOf": [{"type": "null"}, {"$ref": "#/defs/list"}]},
        "c": {"enum": ["x", None]},
        "d": {"type": "number", "minimum": -2, "maximum": 2},
    },
}


def test_values_follow_their_schema() -> None:
    values = Values({"defs": {"list": {"type": "array", "minItems": 1, "items": {"const": 7}}}})
    drawn = [values.draw(SCHEMA, Draws(random.Random(i).randbytes(12))) for i in range(200)]
    for value in drawn:
        assert {"a", "b"} <= set(value) <= set("abcd") and 2 <= value["a"] <= 5
        assert value["b"] is None or (value["b"] and set(value["b"]) == {7})
        assert value.get("c") in ("x", None) and -2 <= value.get("d", 0) <= 2
    assert len({str(value) for value in drawn}) > 10
