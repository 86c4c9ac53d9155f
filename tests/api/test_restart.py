"""A real server over a real zoo whose models change while it runs, and whose agent is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from blockllm import LLM
from blockllm.errors import CheckpointError, ModelNotFound
from blockllm.zoo import Zoo
from tests.api.serving import WORKER, children_of
from tests.makers import make_checkpoint, make_lora, make_tokenizer

VOCABULARY = 300
OPTIONS = ("--port", "0", "--device", "cpu", "--dtype", "float32", "--memory", "16M")
PLAIN = {**os.environ, "BLOCKLLM_KERNELS": "plain"}
DEADLINE = 60


class Served:
    """A server process and its log."""

    def __init__(self, zoo: Path, log: Path, *words: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "blockllm", "serve", *words, "--zoo", str(zoo), *OPTIONS]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=PLAIN
            )
        assert self.process.stdout is not None
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if " ready on " in line:
                self.client = httpx2.Client(base_url=line.split()[-1], timeout=DEADLINE)
                break

    @property
    def log(self) -> str:
        return self._log.read_text()

    def agent(self) -> int:
        return children_of(self.process.pid, WORKER, without=True)[0]

    def kill_agent(self) -> None:
        """Kill it and wait until another one is ready."""
        os.kill(self.agent(), signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        while self.client.get("/ready").status_code == 200:
            assert time.monotonic() < deadline
        while self.client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def ask(self, model: str) -> httpx2.Response:
        body = {"model": model, "prompt": "hello", "max_tokens": 8, "temperature": 0}
        return self.client.post("/v1/completions", json={**body, "return_token_ids": True})

    def answers(self, *models: str) -> dict[str, Any]:
        """What must not change: tokens, text and fingerprint of each model."""
        found = {}
        for model in models:
            answer = self.ask(model).json()
            choice = answer["choices"][0]
            found[model] = (choice["token_ids"], choice["text"], answer["system_fingerprint"])
        return found

    def names(self) -> list[str]:
        return [model["id"] for model in self.client.get("/v1/models").json()["data"]]

    def end(self) -> int:
        self.process.terminate()
        status = self.process.wait(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and a zoo of a base, an adapter, another model and a damaged one; tests must
    not change it."""
    path = tmp_path_factory.mktemp("sources")
    values = {"vocab_size": VOCABULARY, "num_hidden_layers": 2}
    base = make_checkpoint(path / "base", seed=1, **values)
    make_checkpoint(path / "other", seed=2, **values)
    make_checkpoint(path / "third", "qwen3", seed=3, **values)
    for name in ("base", "other", "third"):
        make_tokenizer(path / name, VOCABULARY)
    make_lora(base, path / "lora")
    zoo = Zoo(path / "zoo")
    zoo.add("base", base)
    zoo.add("lora", path / "lora", base="base")
    zoo.add("other", path / "other")
    make_checkpoint(path / "damaged", seed=4, **values)
    make_tokenizer(path / "damaged", 200)
    zoo.add("damaged", path / "damaged")
    damage(zoo, "damaged")
    return path


class Story(NamedTuple):
    """What was seen before anything changed, and after each change and death of the agent."""

    first: dict[str, Any]
    changed: dict[str, Any]  # `other` is another model in the zoo by now, `lora` is there no more
    collected: dict[str, Any]  # `gc` has removed the packs of both
    gone: httpx2.Response  # then asking for `lora`
    names: list[str]  # and what is listed
    damaged: httpx2.Response  # asking for a model whose tokenizer was damaged at the start
    said: list[str]
    log: str
    status: int


@pytest.fixture(scope="module")
def story(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    zoo = Zoo(shutil.copytree(sources / "zoo", folder / "zoo"))
    server = Served(folder / "zoo", folder / "log")
    first, damaged = server.answers("base", "lora", "other"), server.ask("damaged")
    zoo.remove("other")
    zoo.add("other", sources / "third")
    zoo.remove("lora")
    server.kill_agent()
    changed = server.answers("base", "lora", "other")
    zoo.gc()
    server.kill_agent()
    collected = server.answers("base")
    gone, names = server.ask("lora"), server.names()
    log, status = server.log, server.end()
    return Story(first, changed, collected, gone, names, damaged, server.said, log, status)


def test_replaced_and_removed_models_answer_as_before_when_the_agent_is_restarted(story: Story):
    assert story.changed == story.first
    assert len({fingerprint for _, _, fingerprint in story.first.values()}) == 3


def test_a_model_without_weights_is_left_out_alone_and_says_so(story: Story):
    assert story.collected == {"base": story.first["base"]}
    assert story.names == ["base"]
    assert story.gone.status_code == 404
    error = story.gone.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'lora' is not served: its weights are gone from the zoo" in error["message"]
    assert "restart the server" in error["message"]
    assert "model 'lora' is left out: its weights are gone" in story.log
    assert "model 'other' is left out: its weights are gone" in story.log
    assert story.status == 0


def test_of_all_models_one_with_damaged_files_is_left_out(story: Story):
    assert story.damaged.status_code == 404
    message = story.damaged.json()["error"]["message"]
    assert "'damaged' is not served: tokenizer.json: not a usable tokenizer" in message
    assert "model 'damaged' is left out: tokenizer.json" in story.log
    assert any("left out: damaged: tokenizer.json" in line for line in story.said)


def test_a_model_that_was_asked_for_by_name_has_to_be_sound(sources: Path, tmp_path: Path):
    folder = shutil.copytree(sources / "zoo", tmp_path / "zoo")
    options = {"zoo": str(folder), "memory": "16M", "device": "cpu", "kernels": "plain"}
    with pytest.raises(CheckpointError, match=r"'damaged' cannot be served: tokenizer\.json"):
        LLM(["base", "damaged"], **options)
    zoo = Zoo(folder)
    zoo.pack_path(next(zoo.chain("other").tensors()).pack).unlink()
    with pytest.raises(CheckpointError, match="'other' cannot be served: its weights are gone"):
        LLM(["base", "other"], **options)
    with LLM(**options) as llm:
        assert llm.models.names == ["base", "lora"]
        with pytest.raises(ModelNotFound, match="'other' is not served: its weights are gone"):
            llm.generate("a", "other")


def damage(zoo: Zoo, name: str) -> None:
    """Break the model's own tokenizer file, as a disk would."""
    path = zoo.asset(name, "tokenizer.json")
    assert path is not None
    path.write_text('{"version": "1.0"')
