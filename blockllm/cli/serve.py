"""`blockllm serve`: an OpenAI-compatible server over the models of a zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from blockllm.cli.output import say
from blockllm.config import (
    EngineSettings,
    ServerSettings,
    default_zoo,
    load,
    load_tenants,
    refuse_misspelt_keys,
)
from blockllm.observability.stats import EngineStats

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from blockllm.api.models import Models, ZooReader


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models; all of the zoo if none.")
    ] = None,
    zoo: Annotated[str, typer.Option(envvar="BLOCKLLM_ZOO", help="Folder of the zoo.")] = "",
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [8000].")] = None,
    memory: Annotated[str | None, typer.Option(help="Weights and KV together, as 8GiB.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads; 0: all cores.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Tokens computed per turn.")] = None,
    max_turn_seconds: Annotated[
        float | None, typer.Option(help="Wanted length of a turn while something decodes.")
    ] = None,
    max_sequences: Annotated[int | None, typer.Option(help="Sequences running at once.")] = None,
    max_context: Annotated[int | None, typer.Option(help="Cap on every model's context.")] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Launch turns ahead of tokens: auto, on, off.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY or TENANT:KEY, repeatable; `ps` shows it, BLOCKLLM_API_KEY hides it."
        ),
    ] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File with one key per line.")] = None,
    keep_alive: Annotated[
        int | None, typer.Option(help="Seconds an idle connection stays open [75].")
    ] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds to finish requests on SIGTERM [30].")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Settings file (TOML).")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C; a second signal ends it at once."""
    given = {**locals(), "api_key": "\n".join(api_key) if api_key else None}
    refuse_misspelt_keys()
    engine = load(EngineSettings, "engine", config, flags_of(EngineSettings, given))
    engine = msgspec.structs.replace(engine, tenants=load_tenants(config))
    server = load(ServerSettings, "server", config, flags_of(ServerSettings, given))

    from blockllm.zoo import Zoo

    folder = zoo or default_zoo()
    run_server(lambda: Zoo(folder).moment(), folder, models or None, engine, server)


def flags_of(kind: type[msgspec.Struct], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are settings of this kind, by name."""
    return {name: given[name] for name in kind.__struct_fields__ if name in given}


def run_server(
    open_zoo: Callable[[], AbstractContextManager[ZooReader]],
    zoo: str,
    models: list[str] | None,
    engine: EngineSettings,
    server: ServerSettings,
    agent_command: tuple[str, ...] | None = None,
) -> None:
    """Run until asked to stop. Raises BlockllmError when the server cannot start."""
    import asyncio

    import uvicorn

    from blockllm.api.server import Server
    from blockllm.cluster.agent_main import AgentOptions
    from blockllm.cluster.supervisor import AGENT_COMMAND
    from blockllm.observability.plain import log_plainly

    log_plainly(server.log_level, "server")
    options = AgentOptions(zoo, engine, log_level=server.log_level)
    command = agent_command or AGENT_COMMAND

    async def main() -> None:
        await Server(server, open_zoo, models, options, announce, command).run()

    with asyncio.Runner(
        loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()
    ) as runner:
        runner.run(main())


def announce(address: str, models: Models, stats: EngineStats) -> None:
    """Say on standard output that requests are taken, and what sharing saves."""
    import time

    saved = 1 - stats.weight_bytes / max(stats.weight_bytes_unshared, 1)
    lines = [
        f"weights {_megabytes(stats.weight_bytes)}, without sharing "
        f"{_megabytes(stats.weight_bytes_unshared)} ({saved:.0%} saved); "
        f"KV {_megabytes(stats.kv_bytes)} in {stats.num_pages} pages",
        f"models: {', '.join(models.names)}",
        *(f"left out: {name}: {reason}" for name, reason in models.left_out.items()),
        f"ready on {address}",
    ]
    for line in lines:
        say(time.strftime("%Y-%m-%d %H:%M:%S"), line)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
