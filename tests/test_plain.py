"""Escape sequences and overrides of direction in names, paths and answers are shown, not done."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from blockllm.cli.chat import converse
from blockllm.cli.main import app
from blockllm.errors import ZooError
from blockllm.observability.plain import PlainFormatter, plain, plain_json
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint

HOSTILE = "a\x1b[2J\x9b31m\u202egnp\u2066\x07\rb"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_each_steering_character_is_spelt() -> None:
    assert plain(HOSTILE) == r"a\x1b[2J\x9b31m\u202egnp\u2066\x07\x0db"
    assert plain("one\ntwo\tthree \udcff", keep="\n\t") == "one\ntwo\tthree \\udcff"
    assert plain("ordinary text, ünïcode, עברית, 日本語") == "ordinary text, ünïcode, עברית, 日本語"


def test_json_says_the_same() -> None:
    text = msgspec.json.encode({"path": HOSTILE}).decode()
    assert not STEERING.search(plain_json(text))
    assert json.loads(plain_json(text)) == {"path": HOSTILE}


def test_a_log_line_cannot_look_like_another() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "%s", ("a\x1b[1m\nserver INFO b",), None)
    text = PlainFormatter("server %(levelname)s %(message)s").format(record)
    assert text == "server ERROR a\\x1b[1m\n    server INFO b"


def test_commands_show_hostile_paths(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    hostile = tmp_path / f"{HOSTILE}\n[bold]x"
    shutil.move(source, hostile)
    zoo = ["--zoo", str(tmp_path / f"zoo{HOSTILE}")]
    for command in (["add", "model", str(hostile)], ["show", "model"], ["ls"], ["show", "model"]):
        result = CliRunner().invoke(app, ["zoo", *command, *zoo])
        assert result.exit_code == 0, result.exception
        assert not STEERING.search(result.output), command
    assert r"\x1b[2J" in result.output and "[bold]x" in result.output
    pack = next(path for path in (tmp_path / zoo[1]).rglob("*.pack"))
    pack.unlink()
    assert not STEERING.search(CliRunner().invoke(app, ["zoo", "verify", *zoo]).output)


def test_errors_of_commands_are_one_plain_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blockllm", "zoo", "add", "x", f"no {HOSTILE}\nfolder"]
    run = subprocess.run([*command, "--zoo", tmp_path / "zoo"], capture_output=True)
    text = run.stderr.decode()
    assert run.returncode == 1 and text.startswith("error: no folder")
    assert text.count("\n") == 1 and not STEERING.search(text)


def test_answers_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    class FakeChatModel:
        name, has_template = "model", True

        def answer(self, messages: object) -> object:
            yield "one\ntwo \x1b[31m"
            yield "\u202ered"

    converse(lambda name: FakeChatModel(), "model", "hello")  # type: ignore[arg-type, return-value]
    assert capsys.readouterr().out == "one\ntwo \\x1b[31m\\u202ered\n"


@pytest.mark.parametrize(
    "name", ["a\x1b[1m", "../x", "a/b", "a b", "a\n", 'a"b', "ä", "", "x" * 97]
)
def test_new_names_are_safe_everywhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZooError, match="cannot be a model's name") as caught:
        Zoo(tmp_path / "zoo").add(name, tmp_path)
    assert not STEERING.search(str(caught.value))
