"""`blockllm bench`: load generators, comparisons, kernels and profiles."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blockllm.cli import bench_engine
from blockllm.errors import BlockllmError, ConfigError

if TYPE_CHECKING:
    from blockllm.bench.serve import LoadTest
    from blockllm.bench.workload import Workload

_SOLO_REQUESTS = 3  # of each model; their median counts

app = typer.Typer(help="Measure servers, comparisons, kernels.", no_args_is_help=True)
app.command("kernel")(bench_engine.kernel)
app.command("profile")(bench_engine.profile)


@app.command()
def serve(
    url: Annotated[str, typer.Argument(help="Server, as http://127.0.0.1:8000.")],
    models: Annotated[str, typer.Option(help="Models, comma-separated.")] = "",
    requests: Annotated[int, typer.Option(help="Requests to measure.")] = 64,
    concurrency: Annotated[int, typer.Option(help="Requests at once; 0: no limit.")] = 0,
    rate: Annotated[float, typer.Option(help="Open loop: requests per second.")] = 0.0,
    arrival: Annotated[str, typer.Option(help="poisson, gamma, bursty, uniform.")] = "poisson",
    burstiness: Annotated[
        float, typer.Option(help="gamma: variation of gaps; bursty: peak over mean rate.")
    ] = 4.0,
    prompt_length: Annotated[
        str, typer.Option(help="N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geometric:MEAN.")
    ] = "128",
    output_length: Annotated[str, typer.Option(help="Output tokens, as for prompts.")] = "64",
    popularity: Annotated[str, typer.Option(help="uniform, zipf:ALPHA, maf.")] = "uniform",
    tenants: Annotated[str, typer.Option(help="Tenants, comma-separated.")] = "",
    keys: Annotated[
        Path | None, typer.Option(help="File of tenant:key lines; or BLOCKLLM_BENCH_KEYS.")
    ] = None,
    shared_prefix: Annotated[str, typer.Option(help="TOKENS:GROUPS common beginnings.")] = "",
    token_range: Annotated[str, typer.Option(help="LOW:HIGH of prompts' token ids.")] = "100:1000",
    text_prompts: Annotated[bool, typer.Option(help="Words instead of token ids.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Replay this .jsonl or .csv.")] = None,
    save_trace: Annotated[Path | None, typer.Option(help="Write the plan as a trace.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    warm_up: Annotated[int, typer.Option(help="Requests before that do not count.")] = 4,
    solo: Annotated[bool, typer.Option(help="Measure each model alone first.")] = False,
    slo: Annotated[str, typer.Option(help="Limits in seconds: ttft=0.5,tpot=0.1.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 600.0,
    extra_body: Annotated[str, typer.Option(help="JSON object added to requests.")] = "{}",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results and plots.")] = None,
) -> None:
    """Load an OpenAI-compatible server and report latencies and throughput."""
    options = dict(locals())
    _need_extra()
    from rich.console import Console

    from blockllm.bench.serve import run_load_test

    run_load_test(_load_test(options), Console())


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(help="The comparison, as TOML.")],
    out: Annotated[Path, typer.Option(help="Folder for results, table and plots.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE for ${NAME}; repeat.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    resident: Annotated[
        Literal["together", "alone"] | None, typer.Option(help="Instead of the spec's.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms; repeat.")] = None,
    load: Annotated[list[str] | None, typer.Option(help="Only these loads; repeat.")] = None,
    most_stolen: Annotated[
        float | None,
        typer.Option(help="Measure a pair again if the machine's host took more of its time: 0.1"),
    ] = None,
) -> None:
    """Run servers against each other on the same requests, interleaved."""
    _need_extra()
    from rich.console import Console

    from blockllm.bench.compare import run_comparison
    from blockllm.bench.spec import read_spec, select
    from blockllm.bench.verdict import write_verdict

    console = Console(highlight=False)
    variables = dict(assignment.partition("=")[::2] for assignment in assignments or [])
    chosen = select(read_spec(spec, variables), arm or [], load or [], pairs, resident, most_stolen)
    # ended from outside, it must neither leave servers behind nor lose what it measured
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    comparison = run_comparison(chosen, out, lambda line: console.print(line, markup=False))
    console.print(write_verdict(chosen, comparison, out), markup=False, soft_wrap=True)
    if comparison.stopped is not None:
        raise comparison.stopped
    if comparison.disagreements:
        raise BlockllmError(f"{len(comparison.disagreements)} outputs differ: see {out}/table.md")


def _need_extra() -> None:
    for package in ("aiohttp", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f'{package} is not installed: pip install "blockllm[bench]"')


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _load_test(options: dict[str, Any]) -> LoadTest:
    """From the options of `serve`, by name."""
    from blockllm.bench.metrics import parse_slo
    from blockllm.bench.serve import LoadTest, read_keys

    workload = _workload(options)
    env = os.environ.get("BLOCKLLM_BENCH_KEYS", "")
    return LoadTest(
        url=options["url"],
        workload=workload,
        keys=read_keys(workload.tenants, options["keys"], env),
        timeout=options["timeout"],
        warm_up=options["warm_up"],
        solo=_SOLO_REQUESTS if options["solo"] else 0,
        slo=parse_slo(options["slo"]) if options["slo"] else None,
        trace=options["trace"],
        save_trace=options["save_trace"],
        extra_body=_object(options["extra_body"]),
        json=options["json_file"],
        out=options["out"],
    )


def _object(text: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"extra_body: expected a JSON object: {error}") from error


def _workload(options: dict[str, Any]) -> Workload:
    """From the options of the same names."""
    import msgspec

    from blockllm.bench.workload import Workload

    fields = {name: options[name] for name in Workload.__struct_fields__}
    fields["models"] = _names(options["models"])
    fields["tenants"] = _names(options["tenants"])
    try:
        return msgspec.convert(fields, Workload)
    except msgspec.ValidationError as error:
        raise ConfigError(f"workload: {error}") from error
