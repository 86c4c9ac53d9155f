"""One model, several requests at once: this engine against transformers' static batching.

    python -m tools.studies.measure_transformers --model DIR --zoo DIR --name NAME [--concurrency 8]

Both hold the model in one process in fp32 with the same threads, get the same prompts of equal
length (so that static batching pads nothing) and write the same number of tokens. The arms are
interleaved; tokens must be equal. Beside them stands the limit of the machine: weight bytes over
measured read bandwidth, floating-point work over the measured peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from blockllm.config import EngineSettings
from blockllm.core import Chain, LayerFunction
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tools.studies.measure_sharing import drive, make_request, random_prompt, spread

TRIES = 7


class Limit(NamedTuple):
    """What the machine could do at best."""

    bytes_per_second: float
    flop_per_second: float
    weight_bytes: int  # read once per generated token of the batch
    seconds: float
    tokens_per_second: float


class Reference:
    """transformers' generate over one batch of prompts of equal length."""

    def __init__(self, folder: Path) -> None:
        import transformers

        logging: Any = transformers.utils.logging
        logging.disable_progress_bar()
        model_class: Any = transformers.AutoModelForCausalLM
        self.model: Any = model_class.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None  # every request runs to its length

    def run(self, prompts: list[list[int]], output: int) -> tuple[list[list[int]], float]:
        """The new tokens of every prompt, and seconds."""
        start = time.perf_counter()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=output,
                min_new_tokens=output,
                do_sample=False,
                pad_token_id=0,
            )
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return tokens, time.perf_counter() - start


def run_engine(
    engine: Engine, name: str, prompts: list[list[int]], output: int
) -> tuple[list[list[int]], float]:
    """The same with the engine, all requests at once."""
    requests = [make_request(str(i), name, prompt, output) for i, prompt in enumerate(prompts)]
    tokens, seconds = drive(engine, [requests])
    return [tokens[request.id] for request in requests], seconds


def machine_limit(chain: Chain, options: argparse.Namespace) -> Limit:
    """The least time for the batch: prompts at peak speed, then one pass over the weights per
    token (or its arithmetic, if that takes longer)."""
    data = torch.ones(128 << 20)  # 512 MiB, larger than any cache
    bandwidth = data.nbytes / _best(lambda: data.sum())
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    peak = 2 * a.shape[0] * b.numel() / _best(lambda: a @ b)
    layers, head = _parameters(chain)
    step = max(4 * (layers + head) / bandwidth, 2 * options.concurrency * (layers + head) / peak)
    rows = options.concurrency * options.prompt
    prefill = max(4 * layers / bandwidth, 2 * rows * layers / peak)
    prefill += 2 * options.concurrency * head / peak
    seconds = prefill + (options.output - 1) * step
    tokens = options.concurrency * options.output
    return Limit(bandwidth, peak, 4 * (layers + head), seconds, tokens / seconds)


def _best(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _parameters(chain: Chain) -> tuple[int, int]:
    """Parameters of the decoder layers and of the head; the embedding is looked up."""
    layers = [layer for entry in chain.entries for layer in entry.block.layers]
    counts = [sum(t.nbytes // 4 for t in layer.tensors.values()) for layer in layers]
    decoder = [isinstance(layer.function, LayerFunction) for layer in layers]
    return sum(n for n, is_one in zip(counts, decoder, strict=True) if is_one), counts[-1]


def compare(
    engine: Engine, reference: Reference, options: argparse.Namespace, vocab: int
) -> tuple[list[float], list[float], int]:
    """Output tokens/s of both arms, a pair at a time, and how many answers differ. The first
    pair warms up and is dropped."""
    ours, theirs, differing = list[float](), list[float](), 0
    work = options.concurrency * options.output
    for pair in range(options.pairs + 1):
        prompts = [
            random_prompt(31 * pair + i, options.prompt, vocab) for i in range(options.concurrency)
        ]
        mine, fast = run_engine(engine, options.name, prompts, options.output)
        expected, slow = reference.run(prompts, options.output)
        differing += sum(a != b for a, b in zip(mine, expected, strict=True))
        if pair:
            ours.append(work / fast)
            theirs.append(work / slow)
    return ours, theirs, differing


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model twice, compare the arms, measure the machine."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    zoo = Zoo(options.zoo)
    chain = zoo.chain(options.name)
    limit = machine_limit(chain, options)
    settings = EngineSettings(
        device="cpu",
        dtype="float32",
        memory=options.memory,
        prefix_cache=False,
        threads=torch.get_num_threads(),
    )
    engine, reference = Engine(zoo, [options.name], settings), Reference(options.model)
    ours, theirs, differing = compare(engine, reference, options, chain.vocab_size)
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "threads": torch.get_num_threads(),
        "engine_tokens_per_second": ours,
        "transformers_tokens_per_second": theirs,
        "ratios": [a / b for a, b in zip(ours, theirs, strict=True)],
        "answers_compared": (options.pairs + 1) * options.concurrency,
        "answers_that_differ": differing,
        "limit": limit._asdict(),
    }


def markdown(seen: dict[str, Any]) -> str:
    """The table of the documentation."""
    limit, settings = Limit(**seen["limit"]), seen["settings"]
    reached = statistics.median(seen["engine_tokens_per_second"]) / limit.tokens_per_second
    rows = [
        (
            "work",
            f"{settings['concurrency']} requests at once, prompts of {settings['prompt']} tokens, "
            f"{settings['output']} new ones, fp32, {seen['threads']} threads",
        ),
        ("blockllm", f"{spread(seen['engine_tokens_per_second'], 1)} tokens/s"),
        (
            "transformers, static batch",
            f"{spread(seen['transformers_tokens_per_second'], 1)} tokens/s",
        ),
        ("ratio of interleaved pairs", spread(seen["ratios"])),
        (
            "answers that differ",
            f"{seen['answers_that_differ']} of {seen['answers_compared']}",
        ),
        (
            "limit of the machine",
            f"{limit.tokens_per_second:.1f} tokens/s ({limit.weight_bytes / 1e6:,.0f} MB per step "
            f"at {limit.bytes_per_second / 1e9:.1f} GB/s, prompts at "
            f"{limit.flop_per_second / 1e9:.0f} GFLOP/s); reached {reached:.0%}",
        ),
    ]
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def main() -> None:
    """Read the command line, measure, print, write; exit status 1 if tokens differ."""
    parser = argparse.ArgumentParser(description="One model against transformers' static batch.")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--name", default="base", help="the same model in the zoo")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/transformers.json"))
    options = parser.parse_args()
    seen = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(seen, indent=2), encoding="utf-8")
    print(markdown(seen))
    raise SystemExit(1 if seen["answers_that_differ"] else 0)


if __name__ == "__main__":
    main()
