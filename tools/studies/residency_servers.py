"""Servers that are compared when models come and go: how they start, what they hold and load."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from blockllm.bench.client import Target
from blockllm.bench.launch import Launch
from blockllm.bench.machine import Memory, memory_of
from blockllm.bench.process import ServerProcess
from blockllm.bench.runner import Targets
from tools.studies.make_many import Family

_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.5  # between two looks at the memory of the processes
_ROUTER_LOAD = re.compile(r"spawning server instance with name=(\S+)")


class Loads(NamedTuple):
    """Models loaded since the start, and the bytes of what was loaded for them."""

    models: int
    nbytes: int


class Arm(Protocol):
    """A server that can be started."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    def launch(self) -> Launch:
        """Its process."""
        ...

    def loads(self, url: str, log: Path) -> Loads:
        """What it has loaded by now."""
        ...


class Blockllm(NamedTuple):
    """`blockllm serve` with so many bytes for weights and pages together."""

    name: str
    family: Family
    memory: int
    flags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # that are served; all of the family if none

    def launch(self) -> Launch:
        """One server."""
        command = (sys.executable, "-m", "blockllm", "serve", *self.models)
        own = ("--zoo", str(self.family.zoo), "--memory", str(self.memory))
        options = (*own, "--port", "{port}", "--dtype", "float32")
        names = self.models or _names(self.family)
        return Launch((*command, *options, *self.flags), {}, "/ready", names)

    def loads(self, url: str, log: Path) -> Loads:
        """From its metrics."""
        found = read_metrics(url)
        return Loads(
            int(found["blockllm_weight_loads_total"]),
            int(found["blockllm_weight_load_bytes_total"]),
        )


class Router(NamedTuple):
    """llama.cpp's `llama-server` without a model: at most so many models in processes of their own.
    Keys and values in fp32, as ours."""

    name: str
    family: Family
    binary: str
    models_max: int
    flags: tuple[str, ...] = ()

    def launch(self) -> Launch:
        """All models of the family, none loaded."""
        models = ("--models-preset", str(self.family.presets))
        limit = ("--models-max", str(self.models_max))
        options = ("--port", "{port}", "-ctk", "f32", "-ctv", "f32", *self.flags)
        command = (self.binary, *models, *limit, *options)
        return Launch(command, {}, "/health", _names(self.family))

    def loads(self, url: str, log: Path) -> Loads:
        """From its log; the bytes are those of the files, mapped anew for every load."""
        sizes = {
            model.name: sum(file.stat().st_size for file in self.family.ggufs(model))
            for model in self.family.models
        }
        names = _ROUTER_LOAD.findall(log.read_text(encoding="utf-8", errors="replace"))
        return Loads(len(names), sum(sizes[name] for name in names))


class Running:
    """One started arm, and the most memory its processes had. To be used in `with`."""

    def __init__(self, arm: Arm, log: Path) -> None:
        """Raises BlockllmError when it does not start."""
        log.unlink(missing_ok=True)
        self._arm, self._log, self._ended = arm, log, threading.Event()
        self.process = ServerProcess(arm.launch(), log)
        self.peak = Memory(0, 0, 0)
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Running:
        try:
            self.process.wait_ready(_READY_SECONDS)
        except BaseException:
            self.process.stop()
            raise
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.join()
        self.process.stop()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.peak = Memory(*map(max, self.peak, self.memory()))

    def memory(self) -> Memory:
        """Of all its processes, now."""
        return memory_of([self.process.group])

    @property
    def targets(self) -> Targets:
        """Where each model's requests go."""
        return {name: Target(self.process.url, name) for name in self.process.models}

    def loads(self) -> Loads:
        """What it has loaded by now."""
        return self._arm.loads(self.process.url, self._log)


class Admin:
    """The routes of blockllm with which models come and go."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key

    def add(self, name: str, path: Path, base: str | None = None) -> None:
        """Serve the checkpoint or adapter of a folder under this name; one that has it is
        replaced. Raises HTTPError."""
        fields = {"name": name, "path": str(path)} | ({"base": base} if base else {})
        self._send("POST", "", fields)

    def remove(self, name: str) -> None:
        """Serve it no longer. Raises HTTPError."""
        self._send("DELETE", f"/{name}")

    def unload(self, name: str) -> None:
        """Put its weights out of memory, but for those that others need. Raises HTTPError."""
        self._send("POST", f"/{name}/unload", {})

    def _send(self, method: str, path: str, body: Mapping[str, str] | None = None) -> None:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + "/v1/models" + path, data, headers, method=method)
        with urlopen(request, timeout=300) as answer:
            answer.read()


def read_metrics(url: str) -> Mapping[str, float]:
    """Every metric of a server, summed over its labels."""
    with urlopen(url + "/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _names(family: Family) -> tuple[str, ...]:
    return tuple(model.name for model in family.models)
