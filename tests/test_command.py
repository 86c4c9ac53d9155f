"""The `blockllm` command itself: its version, and what it says of its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import blockllm
from blockllm.cli.main import main

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["blockllm", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "--version") == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"blockllm {project['version']}\n"


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "blockllm", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (said.returncode, said.stdout) == (0, f"blockllm {blockllm.__version__}\n")


def test_a_misspelt_variable_is_a_warning_and_one_for_keys_ends_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("BLOCKLLM_MEMRY", "1GiB")
    assert run(monkeypatch, "--version") == 0
    warning = "warning: BLOCKLLM_MEMRY is not a setting; did you mean BLOCKLLM_MEMORY?\n"
    assert capsys.readouterr().err == warning
    monkeypatch.setenv("BLOCKLLM_API_KEYS", "k")
    assert run(monkeypatch, "serve", "--zoo", str(tmp_path / "zoo")) == 1
    assert "error: BLOCKLLM_API_KEYS: there is no such variable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["API_KEY", "API_KEY_FILE"])
def test_an_empty_key_ends_serve(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    monkeypatch.setenv(f"BLOCKLLM_{name}", "")
    assert run(monkeypatch, "serve", "--zoo", str(tmp_path / "zoo")) == 1
    assert f"error: BLOCKLLM_{name}: got nothing" in capsys.readouterr().err
    monkeypatch.delenv(f"BLOCKLLM_{name}")
    flag = f"--{name.lower().replace('_', '-')}"
    assert run(monkeypatch, "serve", flag, "", "--zoo", str(tmp_path / "zoo")) == 1
    assert f"error: {name.lower()}: got nothing" in capsys.readouterr().err
