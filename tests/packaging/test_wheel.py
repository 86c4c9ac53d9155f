"""The built wheel, in an environment that has nothing else of this checkout: a model is added and
served, and answers.

Dependencies are borrowed from the environment that runs the tests. With WHEEL_PINS=FILE (`make
wheel`) pip installs them into the empty environment, at the versions of that file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockllm import __version__
from tests.makers import make_checkpoint

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*words: str | Path) -> None:
    """Without this checkout on the path, which pip would take for an installed package."""
    subprocess.run(words, env=ENVIRONMENT, check=True)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    shutil.copytree(ROOT / "blockllm", sources / "blockllm")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    run(sys.executable, *PIP, *build, str(sources))
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    pins = os.environ.get("WHEEL_PINS")
    if pins:
        run(python, *PIP, "install", "--constraint", pins, "torch", wheel)
    else:
        run(python, *PIP, "install", "--no-deps", wheel)
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        # read for its packages only: that folder's own .pth files, so this checkout, stay out
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def blockllm(scripts: Path, *words: str) -> str:
    """What the installed command prints; run elsewhere, so that this checkout is not found."""
    command = [scripts / "blockllm", *words]
    done = subprocess.run(command, cwd=scripts, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(scripts: Path, zoo: Path) -> Iterator[str]:
    """The address of a server of the installed package."""
    command = [scripts / "blockllm", "serve", "--zoo", zoo, "--port", "0", "--memory", "64MiB"]
    server = subprocess.Popen(
        command, cwd=scripts, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    guard = threading.Timer(120, server.kill)
    guard.start()
    try:
        assert server.stdout is not None
        lines = (line for line in server.stdout if "ready on " in line)
        yield next(lines).rpartition("ready on ")[2].strip()
    finally:
        guard.cancel()
        server.terminate()
        server.communicate(timeout=30)


def test_the_wheel_comes_from_itself(scripts: Path) -> None:
    where = [scripts / "python", "-c", "import blockllm; print(blockllm.__file__)"]
    found = subprocess.check_output(where, cwd=scripts, env=ENVIRONMENT, text=True)
    assert str(scripts.parent) in found


def test_it_says_its_version(scripts: Path) -> None:
    assert __version__ in blockllm(scripts, "--version")


def test_a_model_is_added_served_and_answers(scripts: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", tokenizer=True, num_hidden_layers=2)
    zoo = tmp_path / "zoo"
    assert "added tiny" in blockllm(
        scripts, "zoo", "add", "tiny", str(checkpoint), "--zoo", str(zoo)
    )
    body = json.dumps({"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    with serving(scripts, zoo) as url:
        request = urllib.request.Request(
            url + "/v1/completions", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
