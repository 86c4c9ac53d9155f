"""From an arm of the spec to the processes it needs. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from blockllm.bench.spec import (
    AnyArm,
    BlockllmArm,
    CommandArm,
    PerModelArm,
    SharedParametersArm,
    TransformersArm,
    UrlArm,
)

_OWN = (sys.executable, "-m", "blockllm", "serve")
_TRANSFORMERS = (sys.executable, "-m", "blockllm.bench.transformers_server")


class Launch(NamedTuple):
    """One server process: its command and environment with `{port}` to be filled in, the path that
    answers 200 when it is ready, and the models (in the loads' names) whose requests it takes."""

    command: tuple[str, ...]
    env: dict[str, str]
    ready: str
    models: tuple[str, ...]

    def on_port(self, port: int) -> Launch:
        """With the port filled in."""
        return self._replace(
            command=tuple(word.replace("{port}", str(port)) for word in self.command),
            env={key: value.replace("{port}", str(port)) for key, value in self.env.items()},
        )


def launches(arm: AnyArm, models: Sequence[str]) -> list[Launch]:
    """The processes of an arm that serves `models`; none for a server that runs already."""
    if isinstance(arm, UrlArm):
        return []
    if isinstance(arm, PerModelArm):
        limits = ["--threads", str(arm.threads)] if arm.threads else []
        limits += ["--memory", arm.memory] if arm.memory else []
        return [_serve(arm.zoo, arm, [model], [*limits, *arm.flags], {}) for model in models]
    if isinstance(arm, BlockllmArm):
        return [_serve(arm.zoo, arm, models, arm.flags, {})]
    if isinstance(arm, SharedParametersArm):
        return [_serve(arm.zoo, arm, models, arm.flags, {"BLOCKLLM_BATCHING": "models"})]
    if isinstance(arm, TransformersArm):
        return [_transformers(arm, models)]
    return _commands(arm, models)


def _serve(
    zoo: str, arm: AnyArm, models: Sequence[str], flags: Sequence[str], env: dict[str, str]
) -> Launch:
    names = [arm.models.get(model, model) for model in models]
    options = ("--zoo", zoo, "--port", "{port}", "--log-level", "warning")
    command = (*_OWN, *dict.fromkeys(names), *options, *flags)
    return Launch(command, {**env, **arm.env}, "/ready", tuple(models))


def _transformers(arm: TransformersArm, models: Sequence[str]) -> Launch:
    options = ("--port", "{port}", "--max-batch", str(arm.max_batch), "--dtype", arm.dtype)
    threads = ("--threads", str(arm.threads)) if arm.threads else ()
    paths = (f"{arm.models.get(model, model)}={arm.paths[model]}" for model in models)
    return Launch((*_TRANSFORMERS, *options, *threads, *paths), arm.env, "/health", tuple(models))


def _commands(arm: CommandArm, models: Sequence[str]) -> list[Launch]:
    if not arm.per_model:
        return [Launch(tuple(arm.command), arm.env, arm.ready, tuple(models))]
    filled = []
    for model in models:
        values = {"{model}": arm.models.get(model, model), "{path}": arm.paths.get(model, "")}
        command = tuple(_replace(word, values) for word in arm.command)
        env = {key: _replace(value, values) for key, value in arm.env.items()}
        filled.append(Launch(command, env, arm.ready, (model,)))
    return filled


def _replace(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text
