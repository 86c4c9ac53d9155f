"""`blockllm bench kernel` and `blockllm bench profile`: where a turn's time goes, and whether its
kernels could be faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockllm.config import EngineSettings, default_zoo, load
from blockllm.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from blockllm.bench.bound import Bound
    from blockllm.bench.kernels import Result
    from blockllm.bench.profile import Phase

Zoo = Annotated[str, typer.Option(envvar="BLOCKLLM_ZOO", help="Folder of the zoo.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: by device.")]
Threads = Annotated[int, typer.Option(help="Compute threads; 0: all cores.")]


def kernel(
    names: Annotated[
        list[str] | None, typer.Argument(help="Begins of kernel names; all if none.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Sizes of this model of the zoo.")] = None,
    zoo: Zoo = "",
    rows: Annotated[str, typer.Option(help="Row counts.")] = "1,8,32,128",
    contexts: Annotated[str, typer.Option(help="Contexts of attention.")] = "512,4096",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results and a plot.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Time every kernel against its plain twin and the limits of the machine."""
    import torch

    from blockllm.bench import kernels
    from blockllm.bench.kernel_cases import all_cases
    from blockllm.bench.kernel_setup import default_setup, setup_of
    from blockllm.bench.roofline import measure_limits
    from blockllm.engine.device.choose import choose_device, choose_dtype
    from blockllm.engine.kernels.choice import Kernels, usable_cores
    from blockllm.zoo import Zoo as Store

    where = choose_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    kind = choose_dtype(dtype, (), where)
    if threads:
        torch.set_num_threads(threads)
    sizes: dict[str, Any] = {"rows": _numbers(rows), "contexts": _numbers(contexts)}
    sizes |= {"device": where, "dtype": kind, "kernels": Kernels(threads or usable_cores())}
    if model:
        chain = Store(zoo or default_zoo()).chains([model])[model]
        setup = setup_of(chain, **sizes)
    else:
        setup = default_setup(**sizes)
    cases = kernels.select(all_cases(setup), names or [])
    if not cases:
        raise ConfigError(f"no kernel's name begins with {' or '.join(names or [])}")
    limits = measure_limits(where, kind)
    results = []
    with torch.inference_mode():
        for case in cases:
            results.append(kernels.measure(case, limits, where))
            _progress(results[-1])
    _print(_kernel_table(results))
    read, compute = limits.bytes_per_second / 1e9, limits.flops_per_second / 1e9
    print(f"limits: {read:.1f} GB/s, {compute:.0f} GFLOP/s {limits.dtype} ({limits.how}); "
          f"{limits.threads} threads, {limits.device}")  # fmt: skip
    _write({"limits": limits, "results": results}, json_file, out, "kernels.json")
    if out:
        kernels.plot(results, limits, out / "kernels.png")
    if wrong := [f"{r.name} {r.size}" for r in results if not r.agrees]:
        raise ConfigError(f"kernel and plain twin disagree: {'; '.join(wrong)}")


def profile(
    zoo: Zoo = "",
    models: Annotated[str, typer.Option(help="Names, comma separated; all if none.")] = "",
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 32,
    prompt: Annotated[int, typer.Option(help="Tokens per prompt.")] = 128,
    output: Annotated[int, typer.Option(help="Tokens generated per request.")] = 64,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Trace for ui.perfetto.dev.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the tables here.")] = None,
    detail: Annotated[bool, typer.Option(help="Also the parts of each layer.")] = False,
    memory: Annotated[str | None, typer.Option(help="Weights and KV together, as 8GiB.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Run the engine on random prompts; show where a turn's time goes."""
    from blockllm.bench import profile as profiling
    from blockllm.bench.bound import Needs
    from blockllm.bench.profile_detail import layer_parts
    from blockllm.bench.roofline import higher, measure_limits
    from blockllm.engine import Engine
    from blockllm.observability.timeline import write_trace
    from blockllm.zoo import Zoo as Store

    flags: dict[str, Any] = {"memory": memory, "device": device, "dtype": dtype}
    flags |= {"threads": threads or None, "max_sequences": max(concurrency, 1)}
    flags |= {"max_rows": max(concurrency, EngineSettings().max_rows)}
    store = Store(zoo or default_zoo())
    chosen = [name for name in models.split(",") if name] or None
    recorder = profiling.make_recorder(device)
    engine = Engine(store, chosen, load(EngineSettings, "engine", None, flags), recorder)
    chains = store.chains(chosen)
    vocab = min(chain.vocab_size for chain in chains.values())
    work = profiling.EngineLoad(tuple(chains), concurrency, prompt, output, temperature)
    profiling.run_load(engine, profiling.shorter(work).requests(vocab, 0))  # warms up
    recorder.clear()
    tensor = engine.parts.caches[0].tensor
    before = measure_limits(tensor.device, tensor.dtype)
    with layer_parts(recorder, detail):
        profiling.run_load(engine, work.requests(vocab, 1))
    limits = higher(before, measure_limits(tensor.device, tensor.dtype))
    # taken as if all were half-way through their answers
    needs = Needs(engine.parts.plan, engine.parts.precision, prompt + output / 2)
    summary = profiling.summarise(recorder, needs, limits)
    for title, phase in (
        ("decoding turns", summary.decode),
        ("turns with prompts", summary.prompts),
    ):
        if phase is not None:
            _print(_phase_table(title, phase))
            _print(_span_table(phase, profiling.track_names(engine)))
    if summary.bound is not None:
        print(_bound_line(summary.bound))
    print(f"timeline switched off: {summary.off_microseconds:.1f} us per turn")
    if out:
        write_trace(out, recorder, profiling.track_names(engine))
        print(f"trace: {out} (open it at https://ui.perfetto.dev)")
    _write({"load": work, "profile": summary}, json_file, None, "")


def _bound_line(bound: Bound) -> str:
    limits = bound.limits
    read, compute = limits.bytes_per_second / 1e9, limits.flops_per_second / 1e9
    return (
        f"limit: a decoding turn reads {bound.num_bytes / 1e6:,.0f} MB at {read:.1f} GB/s and does "
        f"{bound.flops / 1e9:.1f} GFLOP at {compute:.0f} GFLOP/s ({limits.how}): at least "
        f"{bound.milliseconds:.1f} ms, {bound.fraction:.0%} of what turns took"
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"expected numbers such as 1,8,32, got {text!r}")
    return numbers


def _progress(result: Result) -> None:
    import sys

    print(f"{result.name} {result.size}: {result.fraction:.0%}", file=sys.stderr)


def _kernel_table(results: list[Result]) -> Table:
    from rich.table import Table

    table = Table(title="kernels, microseconds: median (min..max)")
    for column in ("kernel", "size"):
        table.add_column(column, no_wrap=True)
    for column in ("time", "plain twin", "x", "max diff", "GB/s", "GFLOP/s", "limit", "of limit"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        times = [f"{t.median:,.0f} ({t.low:,.0f}..{t.high:,.0f})" for t in (r.kernel, r.twin)]
        rates = (f"{r.gigabytes_per_second:.1f}", f"{r.gigaflops:.0f}", f"{r.limit:,.0f}")
        cached = "" if r.beyond_cache else " (in cache)"
        table.add_row(r.name, r.size, *times, f"{r.speedup:.2f}", f"{r.difference:.1e}", *rates,
                      f"{r.fraction:.0%}{cached}")  # fmt: skip
    return table


def _phase_table(title: str, phase: Phase) -> Table:
    from rich.table import Table

    table = Table(title=f"{title}: {phase.turns}, {phase.rows:.0f} rows, {phase.hops:.1f} hops")
    table.add_column("part")
    for column in ("ms per turn", "share", "median", "p95"):
        table.add_column(column, justify="right")
    for s in (*phase.parts, phase.turn, phase.outside):
        table.add_row(s.name, f"{s.mean:.3f}", f"{s.share:.1%}", f"{s.median:.3f}", f"{s.p95:.3f}")
    table.add_row("outside compute per hop", f"{phase.outside_per_hop:.3f}", "", "", "")
    return table


def _span_table(phase: Phase, names: dict[int, str]) -> Table:
    from rich.table import Table

    table = Table(title="hops, medians in ms")
    table.add_column("spans")
    columns = ("hops", "rows", "wait", "gather", "compute", "hand over")
    for column in columns:
        table.add_column(column, justify="right")
    for s in phase.spans:
        times = [f"{value:.3f}" for value in (s.wait, s.gather, s.compute, s.hand_over)]
        name = " to ".join(dict.fromkeys((names[s.spans[0]], names[s.spans[-1]])))
        table.add_row(name, str(s.hops), f"{s.rows:.0f}", *times)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 180)  # numbers are useless when cut off
    console.print(table)


def _write(document: dict[str, Any], file: Path | None, folder: Path | None, name: str) -> None:
    import msgspec

    text = json.dumps(msgspec.to_builtins(document), indent=1)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if file:
        file.write_text(text, encoding="utf-8")
