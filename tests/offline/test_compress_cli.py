"""Options of `zoo add --share delta`: what does not go together is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockllm.cli.main import app
from blockllm.errors import ZooError


def refused(folder: Path, *options: str) -> str:
    """Why adding fails."""
    text = folder / "text"
    text.write_text("text")
    words = [str(text) if option == "TEXT" else option for option in options]
    command = ["zoo", "add", "name", str(folder / "none"), "--zoo", str(folder / "zoo"), *words]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and isinstance(result.exception, ZooError)
    assert not (folder / "zoo").exists()
    return str(result.exception)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-kl", "0.1"), "go with --share delta"),
        (("--max-bytes", "20%"), "go with --share delta"),
        (("--share", "delta", "--text", "TEXT"), "needs --base and --text"),
        (("--share", "delta", "--base", "base"), "needs --base and --text"),
        (
            ("--share", "delta", "--base", "b", "--text", "TEXT", "--format", "int8"),
            "neither --format nor --scale",
        ),
        (
            ("--share", "delta", "--base", "b", "--text", "TEXT", "--max-bytes", "much"),
            "expected 20% or 3MiB",
        ),
        (("--share", "delta", "--base", "b", "--text", "TEXT"), "no zoo at"),
    ],
)
def test_refused(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    assert reason in refused(tmp_path, *options)
