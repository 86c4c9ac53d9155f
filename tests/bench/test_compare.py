"""Comparisons of fake servers: interleaving, equality, freezing, clean ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from blockllm.bench import compare
from blockllm.bench.compare import run_comparison
from blockllm.bench.launch import Launch
from blockllm.bench.machine import Ticks, memory_of, processor_ticks, stolen_share
from blockllm.bench.process import ServerProcess
from blockllm.bench.spec import Spec, read_spec
from blockllm.bench.verdict import write_verdict
from blockllm.cli.main import app
from blockllm.errors import BlockllmError

FAKE = Path(__file__).with_name("fake_server.py")

SPEC = f"""
name = "fakes"
pairs = 2
ready_timeout = 30
[[arm]]
name = "one"
kind = "command"
command = ["{sys.executable}", "{FAKE}", "{{port}}"]
exact_group = "fakes"
[[arm]]
name = "other"
kind = "command"
command = ["{sys.executable}", "{FAKE}", "{{port}}", "--shift", "${{shift}}"]
exact_group = "fakes"
[[load]]
name = "small"
models = ["a", "b"]
concurrency = 2
requests = 4
prompt_length = "5"
output_length = "uniform:2:6"
warm_up = 1
limit = 1000000
slo = {{ ttft = 5.0 }}
"""


def read(tmp_path: Path, shift: int = 0, extra: str = "", old: str = "", new: str = "") -> Spec:
    path = tmp_path / "spec.toml"
    path.write_text(extra + SPEC.replace(old, new, 1))
    return read_spec(path, {"shift": str(shift)})


@pytest.mark.parametrize("resident", ["together", "alone"])
def test_arms_take_turns_on_equal_requests(tmp_path: Path, resident: str) -> None:
    spec = read(tmp_path, extra=f'resident = "{resident}"\n')
    said: list[str] = []
    comparison = run_comparison(spec, tmp_path / "out", said.append)
    assert [(run.pair, run.arm) for run in comparison.runs] == [
        (0, "one"),
        (0, "other"),
        (1, "one"),
        (1, "other"),
    ]
    assert comparison.disagreements == []
    texts = [[o.text for o in run.outcomes] for run in comparison.runs]
    assert texts[0] == texts[1] != texts[2] == texts[3]  # each pair has its own plan
    assert all(run.at_rest.pss > 1_000_000 for run in comparison.runs)
    assert all(run.after.rss >= run.after.pss >= run.after.own > 0 for run in comparison.runs)
    assert sum("starting" in line for line in said) == (2 if resident == "together" else 4)
    table = write_verdict(spec, comparison, tmp_path / "out")
    assert "Outputs are equal within fakes." in table and "1.00 (1.00 to 1.00)" not in table
    assert "| one |" in table and "| other |" in table and "100 %" in table
    results = msgspec.json.decode((tmp_path / "out" / "results.json").read_bytes())
    assert len(results["runs"]) == 4 and results["machine"]["cores"] >= 1
    assert set(results["ratios"]["small"]["one"].values()) == {1.0}
    for name in ("table.md", "latency-1.png", "throughput.png", "memory.png"):
        assert (tmp_path / "out" / name).stat().st_size > 100


@pytest.mark.parametrize("resident", ["together", "alone"])
def test_a_pair_that_the_host_disturbed_is_measured_again(
    tmp_path: Path, resident: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.0, 0.5, 0.04, 0.05, 0.3, 0.0, 0.0])  # of each run, in order
    now = Ticks(0, 0)

    def ticks() -> Ticks:
        nonlocal now
        before, now = now, Ticks(now.wanted + 100, now.stolen)
        if before.wanted % 200:  # a run's end
            now = Ticks(now.wanted, now.stolen + round(100 * next(shares)))
        return now

    monkeypatch.setattr(compare, "processor_ticks", ticks)
    spec = read(tmp_path, extra=f'resident = "{resident}"\nmost_stolen = 0.05\n')
    said: list[str] = []
    comparison = run_comparison(spec, tmp_path / "out", said.append)
    assert [(run.pair, run.stolen) for run in comparison.runs] == [
        (0, 0.04), (0, 0.05), (1, 0.0), (1, 0.0),
    ]  # fmt: skip
    assert comparison.repeated == 2 and sum("again: the host took" in line for line in said) == 2
    assert comparison.disagreements == []
    table = write_verdict(spec, comparison, tmp_path / "out")
    assert "host took 2 (0 to 5) % of the processors' time, 2 pairs over 5% were" in table


def test_repeats_end_where_the_host_never_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "stolen_share", lambda before, after: 0.9)
    spec = msgspec.structs.replace(read(tmp_path), most_stolen=0.05)
    comparison = run_comparison(spec, tmp_path / "out", lambda line: None)
    assert [run.pair for run in comparison.runs] == [0, 0, 1, 1]
    assert comparison.repeated == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BlockllmError("one died")])
def test_what_is_complete_outlives_an_early_end(tmp_path: Path, error: BaseException) -> None:
    spec = read(tmp_path)
    later = msgspec.structs.replace(spec.load[0], name="never begun")
    spec = msgspec.structs.replace(spec, load=(*spec.load, later))

    def say(line: str) -> None:
        if "pair 2 of 2, one" in line:
            raise error

    comparison = run_comparison(spec, tmp_path / "out", say)
    assert [(run.pair, run.arm) for run in comparison.runs] == [(0, "one"), (0, "other")]
    assert comparison.stopped is error
    table = write_verdict(spec, comparison, tmp_path / "out")
    assert f"complete (small: 1): {str(error) or 'interrupted'}." in table
    assert "never begun" not in table and "Outputs are equal within fakes." in table


@pytest.mark.parametrize("resident", ["together", "alone"])
def test_an_early_end_without_a_complete_pair_is_an_error(tmp_path: Path, resident: str) -> None:
    spec = read(tmp_path, extra=f'resident = "{resident}"\n')

    def say(line: str) -> None:
        if "pair 1 of 2, other" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(spec, tmp_path / "out", say)


def test_a_terminated_comparison_keeps_what_is_complete(tmp_path: Path) -> None:
    read(tmp_path)
    out = tmp_path / "out"
    arguments = ["bench", "compare", str(tmp_path / "spec.toml"), "--out", str(out), "--set"]
    command = [sys.executable, "-m", "blockllm", *arguments, "shift=0", "--pairs", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "pair 2 of 1000, one" in line:
                break
        process.terminate()
        process.stdout.read()
        assert process.wait(60) != 0
    assert re.search(r"\*\*Stopped\*\* .* \(small: [1-9]", (out / "table.md").read_text())


def test_stolen_time_is_a_share_of_what_was_wanted() -> None:
    before, after = processor_ticks(), processor_ticks()
    assert before.wanted > before.stolen >= 0
    assert 0 <= stolen_share(before, after) <= 1
    assert stolen_share(Ticks(1000, 10), Ticks(1400, 110)) == 0.25


def test_no_prompt_comes_twice(tmp_path: Path) -> None:
    """Else an arm that keeps prompts finds those of an earlier load or pair."""
    spec = read(tmp_path)
    loads = [msgspec.structs.replace(spec.load[0], name=name) for name in ("first", "second")]
    spec = msgspec.structs.replace(spec, arm=spec.arm[:1], load=tuple(loads))
    comparison = run_comparison(spec, tmp_path / "out", lambda line: None)
    texts = [outcome.text for run in comparison.runs for outcome in run.outcomes]
    assert len(texts) == 2 * 2 * 4 == len(set(texts))


def test_unequal_outputs_are_caught(tmp_path: Path) -> None:
    read(tmp_path)
    arguments = ["bench", "compare", str(tmp_path / "spec.toml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--set", "shift=1", "--pairs", "1"])
    assert isinstance(result.exception, BlockllmError)
    assert "4 outputs differ" in str(result.exception)
    assert "**4 outputs differ:**" in (tmp_path / "out" / "table.md").read_text()


def test_a_failed_request_proves_nothing(tmp_path: Path) -> None:
    spec = read(tmp_path, old='models = ["a", "b"]', new='models = ["a", "cut"]')
    comparison = run_comparison(spec, tmp_path / "out", lambda line: None)
    assert len(comparison.disagreements) == 2 * 2  # the cut half of four requests, in two pairs
    table = write_verdict(spec, comparison, tmp_path / "out")
    row = next(line for line in table.splitlines() if line.startswith("| other"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "-" and cells[10] == "4"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    spec = read(tmp_path, old='"--shift", "${shift}"', new='"--wrong"')
    with pytest.raises(BlockllmError, match="unrecognized arguments: --wrong"):
        run_comparison(spec, tmp_path / "out", lambda line: None)


def launch() -> Launch:
    return Launch((sys.executable, str(FAKE), "{port}"), {}, "/health", ("a",))


def test_a_frozen_server_uses_no_time_and_comes_back(tmp_path: Path) -> None:
    server = ServerProcess(launch(), tmp_path / "log")
    try:
        server.wait_ready(30)
        server.freeze()
        state = Path(f"/proc/{server.group}/stat")
        deadline = time.monotonic() + 5
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.thaw()
        server.wait_ready(5)
        assert memory_of([server.group]).rss > 0
    finally:
        server.stop()
    assert memory_of([server.group]).rss == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(server.group, 0)


def test_a_missing_command(tmp_path: Path) -> None:
    with pytest.raises(BlockllmError, match="cannot run no-such-server"):
        ServerProcess(launch()._replace(command=("no-such-server",)), tmp_path / "log")
