"""No client learns where the server's files are."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blockllm.api.app import all_routes
from blockllm.api.errors import IN_THE_LOG, describe, without_paths
from blockllm.api.models import load_models
from blockllm.api.serving import Serving
from blockllm.config import ServerSettings
from blockllm.errors import AgentDied, ModelNotFound
from tests.api.family import FakeZoo
from tests.api.serving import running

SECRET = "secret-place"


@pytest.mark.parametrize(
    "text",
    [
        "it could not be started again: [Errno 2] No such file: '/srv/secret-place/x'",
        "/srv/secret-place: no room",
        "pack (/srv/secret-place/p) is damaged",
        "config.json:/srv/secret-place",
        "~/secret-place/zoo is gone",
        r"C:\secret-place\zoo",
        "ipc:///tmp/secret-place/socket",
    ],
)
def test_reasons_with_a_path_are_in_the_log_only(text: str) -> None:
    assert without_paths(text) == IN_THE_LOG
    assert SECRET not in str(describe(AgentDied(text)))


@pytest.mark.parametrize(
    "text",
    [
        "its weights are damaged (pack 12ab…)",
        "tokenizer.json: not usable",
        "1.5 GB/s, attention/MLP",
    ],
)
def test_other_reasons_are_told(text: str) -> None:
    assert without_paths(text) == text


def test_a_model_that_is_left_out_says_no_path(folder: Path) -> None:
    class Broken(FakeZoo):
        def asset(self, name: str, file: str) -> Path | None:
            if name == "plain":
                raise OSError(5, "Input/output error", f"/srv/{SECRET}/assets/ab")
            return super().asset(name, file)

    models = load_models(Broken(folder / "zoo"), None)
    assert SECRET in models.left_out["plain"]  # for the log and the operator
    with pytest.raises(ModelNotFound, match="is not served") as caught:
        models.find("plain")
    assert SECRET not in str(caught.value)


def test_no_answer_of_any_route_has_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    FakeZoo(folder / "zoo")
    bodies: list[Any] = [
        {"model": "base", "prompt": "hello", "messages": [{"role": "user", "content": "hi"}]},
        {"model": "gone", "prompt": "x"},
        {"model": "base", "prompt": 5, "messages": []},
        {},
    ]
    routes = all_routes(cast(Serving, SimpleNamespace(settings=ServerSettings())))
    with running(folder) as server:
        answers = []
        for is_alive in (True, False):
            if not is_alive:
                os.kill(server.agent_pid(), signal.SIGKILL)
                time.sleep(0.05)
            for route in routes:
                path = re.sub(r"\{.*?\}", "gone", route.path)
                answers.append(server.get(path).text)
                answers += [server.post(path, body).text for body in bodies]
    assert len(answers) >= 80 and any('"error"' in text for text in answers)
    assert not [text for text in answers if SECRET in text or str(tmp_path) in text]
