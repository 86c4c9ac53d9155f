"""An arm that runs: its processes, where each model's requests go, and the memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blockllm.bench.client import Target
from blockllm.bench.launch import launches
from blockllm.bench.machine import Memory, memory_of
from blockllm.bench.process import ServerProcess
from blockllm.bench.spec import AnyArm, UrlArm


class RunningArm:
    """Started and ready from construction on; `stop` it in any case."""

    def __init__(
        self, arm: AnyArm, models: Sequence[str], logs: Path, ready_timeout: float
    ) -> None:
        """Start every process, one after another: several that compile at once on few cores may
        not get ready for minutes. Raises BlockllmError, leaving none."""
        self.arm = arm
        self._ready_timeout = ready_timeout
        self._processes: list[ServerProcess] = []
        try:
            for number, launch in enumerate(launches(arm, models)):
                log = logs / f"{arm.name}-{number}.log"
                self._processes.append(ServerProcess(launch, log))
                self._processes[-1].wait_ready(ready_timeout)
        except BaseException:
            self.stop()
            raise
        self.targets = {model: self._target(model) for model in models}

    def _target(self, model: str) -> Target:
        arm = self.arm
        if isinstance(arm, UrlArm):
            url = arm.url.rstrip("/").removesuffix("/v1")
        else:
            url = next(process.url for process in self._processes if model in process.models)
        return Target(url, arm.models.get(model, model), arm.extra_body, arm.token_ids)

    def memory(self) -> Memory:
        """Of all its processes, now; zeros for a server that is not ours."""
        return memory_of(process.group for process in self._processes)

    def freeze(self) -> None:
        """Let it use no processor time until `thaw`."""
        for process in self._processes:
            process.freeze()

    def thaw(self) -> None:
        """Wake it and wait until it answers. Raises BlockllmError if it died meanwhile."""
        for process in self._processes:
            process.thaw()
        for process in self._processes:
            process.wait_ready(self._ready_timeout)

    def check_alive(self) -> None:
        """Raise BlockllmError if one of its processes has ended."""
        for process in self._processes:
            process.check_alive()

    def stop(self) -> None:
        """End every process."""
        for process in self._processes:
            process.stop()
