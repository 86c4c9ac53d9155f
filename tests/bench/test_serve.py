"""`blockllm bench serve` from the command line, and everything end to end with real models."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from blockllm.bench.compare import run_comparison
from blockllm.bench.process import ServerProcess
from blockllm.bench.serve import read_keys
from blockllm.bench.spec import read_spec
from blockllm.cli.main import app
from blockllm.errors import ConfigError
from blockllm.zoo import Zoo
from tests.bench.test_compare import launch

DEMO = Path(__file__).parents[2] / "demo"
SHORT = ["--requests", "6", "--prompt-length", "5", "--output-length", "4"]


@pytest.fixture
def url(tmp_path: Path):
    server = ServerProcess(launch(), tmp_path / "log")
    try:
        server.wait_ready(30)
        yield server.url
    finally:
        server.stop()


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", "serve", *arguments])


def test_everything_is_shown_and_written(url: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# tenants\nx:one\ny:two\n")
    result = invoke(
        f"{url}/v1", "--models", "a,b", "--concurrency", "2", *SHORT, "--solo",
        "--tenants", "x,y", "--keys", str(keys), "--slo", "ttft=5",
        "--save-trace", str(tmp_path / "trace.csv"),
        "--json", str(tmp_path / "a.json"), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("TTFT", "SLO kept by 100.0%", "fairness", "slowdown", "6 of 6 requests ended"):
        assert words in result.output, words
    written = msgspec.json.decode((tmp_path / "a.json").read_bytes())
    assert written["report"]["total"]["output_tokens"] == 24 and len(written["outcomes"]) == 6
    assert set(written["report"]["models"]) == {"a", "b"}
    for name in ("results.json", "latency.png", "timeline.png"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    again = invoke(
        url, "--trace", str(tmp_path / "trace.csv"), "--tenants", "x,y", "--keys", str(keys),
        "--warm-up", "0", "--json", str(tmp_path / "b.json"),
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    replayed = msgspec.json.decode((tmp_path / "b.json").read_bytes())["outcomes"]
    assert [o["text"] for o in replayed] == [o["text"] for o in written["outcomes"]]


def test_failures_are_never_hidden(url: str) -> None:
    result = invoke(url, "--models", "a,busy", "--concurrency", "2", *SHORT, "--warm-up", "0")
    assert result.exit_code == 0 and "failed: 3 http-503" in result.output
    result = invoke(url, "--models", "busy", "--concurrency", "2", *SHORT)
    assert "every request failed" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "a"], "concurrency or rate"),
        (["--rate", "1"], "models"),
        (["--models", "a", "--rate", "1", "--arrival", "never"], "arrival"),
        (["--models", "a", "--rate", "1", "--extra-body", "[]"], "extra_body"),
        (["--models", "a", "--rate", "1", "--tenants", "x"], "'x' has no API key"),
    ],
)
def test_wrong_options_name_the_field(arguments: list[str], message: str) -> None:
    result = invoke("http://127.0.0.1:9", *arguments)
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("x:one\n")
    assert read_keys(("x", "y"), file, "y:two,three") == {"x": "one", "y": "two", "": "three"}


SPEC = """
pairs = 1
[[arm]]
name = "blocks"
kind = "blockllm"
zoo = "${zoo}"
exact_group = "ours"
flags = ["--memory", "200MiB", "--max-context", "256", "--threads", "1"]
[[arm]]
name = "models"
kind = "shared-parameters"
zoo = "${zoo}"
exact_group = "ours"
flags = ["--memory", "200MiB", "--max-context", "256", "--threads", "1"]
[[arm]]
name = "transformers"
kind = "transformers"
exact_group = "ours"
paths = { base = "${demo}/base", frozen-lower = "${demo}/frozen-lower" }
threads = 1
[[load]]
name = "two"
models = ["base", "frozen-lower"]
concurrency = 4
requests = 6
prompt_length = "uniform:5:20"
output_length = "8"
warm_up = 0
"""


@pytest.mark.slow
def test_real_arms_give_equal_outputs(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "frozen-lower"):
        zoo.add(name, DEMO / name)
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    spec = read_spec(path, {"zoo": str(tmp_path / "zoo"), "demo": str(DEMO)})
    comparison = run_comparison(spec, tmp_path / "out", print)
    assert comparison.disagreements == []
    for run in comparison.runs:
        assert not run.report.total.failed and run.report.total.output_tokens == 48
