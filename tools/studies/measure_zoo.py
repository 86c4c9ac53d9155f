"""A zoo of one base and 24 variants of every kind: bytes, seconds to add, loss, one mixed batch.

    python -m tools.studies.measure_zoo [--out out/zoo-of-all-kinds.json]

A separate copy of a model is what a server of its own would hold: its base and its delta. Exit
status 1 if a model answers otherwise in the mixed batch than alone, or if an exact model's
perplexity is not the one it had when it was trained.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from blockllm.cli.measure import take_measurement
from blockllm.config import EngineSettings
from blockllm.engine import Engine
from blockllm.engine.score import Scorer
from blockllm.offline.compress.compress import CompressOptions, compress
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from tools.demo import FAMILY, MODELS
from tools.studies.measure_sharing import drive, make_request, random_prompt

BASE = "base"
WINDOW = 512  # tokens scored at a time
PROMPT, ANSWER = 24, 24  # tokens of a request of the mixed batch
COMPRESSED_SHARE = 0.2  # of the checkpoint's bytes
TOLERANCE = 1e-3  # of a perplexity: other kernels sum in another order; files round it
MB = 1e6


class Variant(NamedTuple):
    """A model to add: where its files are in the family's folder, and what it is added to.

    `twin` is what it would be without loss; `trained` is its perplexity on its domain as measured
    when it was trained, or None for one that was put together of trained parts.
    """

    name: str
    folder: str
    domain: str
    base: str | None = None
    twin: str | None = None
    trained: float | None = None
    format: str | None = None
    scale: float | None = None


def variants() -> list[Variant]:
    """The base and its 24 variants, each behind what it stands on."""
    family = json.loads((FAMILY / "perplexity.json").read_text(encoding="utf-8"))
    deltas = json.loads((FAMILY / "deltas" / "perplexity.json").read_text(encoding="utf-8"))
    domain_of = dict(family["domain_of"])
    found = [
        Variant(name, name, domain, base, trained=family["perplexity"][name][domain])
        for name, base in MODELS.items()
        for domain in [domain_of[name]]
    ]
    for name, row in deltas["deltas"].items():
        domain_of[name] = row["domain"]
        trained = row["perplexity"][name]
        found.append(Variant(name, f"deltas/{name}", row["domain"], row["parent"], None, trained))
    return [
        *found,
        Variant("base-int8", BASE, domain_of[BASE], twin=BASE, format="int8"),
        Variant("lora-b-int8", "lora-b", domain_of["lora-b"], "base-int8", twin="lora-b"),
        Variant("full-delta", "full", domain_of["full"], BASE, twin="full", format="delta"),
        Variant("lora-b-half", "lora-b", domain_of["lora-b"], BASE, scale=0.5),
        Variant("houlsby-on-lower", "deltas/houlsby", domain_of["houlsby"], "frozen-lower"),
        Variant("prefix-on-lora", "deltas/prefix", domain_of["prefix"], "lora-b"),
        Variant("bitfit-on-lora", "deltas/bitfit", domain_of["bitfit"], "lora-b"),
    ]


def build(zoo: Zoo, chosen: list[Variant]) -> list[dict[str, Any]]:
    """Add all; one row of facts for each."""
    rows = []
    for one in chosen:
        started = time.perf_counter()
        source = FAMILY / one.folder
        if one.format == "delta":
            assert one.base is not None
            options = CompressOptions(max_bytes=COMPRESSED_SHARE)
            report = compress(zoo, one.name, source, one.base, heldout(one), options).report
        else:
            form: Any = one.format
            report = zoo.add(one.name, source, base=one.base, format=form, scale=one.scale)
        rows.append(
            {
                "model": one.name,
                "kind": zoo.card(one.name).kind,
                "base": one.base,
                "domain": one.domain,
                "total_bytes": report.total_bytes,
                "stored_bytes": report.stored_bytes,
                "seconds_to_add": time.perf_counter() - started,
            }
        )
    return rows


def heldout(one: Variant) -> bytes:
    """Text of the model's domain that nothing trained on."""
    return (FAMILY / "heldout" / f"{one.domain}.txt").read_bytes()


def file_bytes(chosen: list[Variant], rows: list[dict[str, Any]]) -> int:
    """What a folder of downloads takes: a file for each checkpoint, format and adapter."""
    files = {}
    for one, row in zip(chosen, rows, strict=True):
        weights = sum(path.stat().st_size for path in (FAMILY / one.folder).glob("*.safetensors"))
        own = {None: weights, "int8": row["total_bytes"], "delta": row["stored_bytes"]}
        files[one.folder, one.format] = own[one.format]
    return sum(files.values())


def judge(zoo: Zoo, chosen: list[Variant], rows: list[dict[str, Any]], limit: int | None) -> None:
    """Note on each row what is lost: against the twin, or against the model as it was trained.

    `limit` is how many windows of text an exact model is scored on at most; short of all of them
    there is nothing to compare it with.
    """
    scorer = Scorer(zoo, [one.name for one in chosen], settings(2))
    for one, row in zip(chosen, rows, strict=True):
        row["exact"] = zoo.card(one.name).exact and one.twin is None
        if one.twin is not None:
            loss = take_measurement(zoo, one.name, one.twin, heldout(one), WINDOW)
            row |= {"rise": loss.rise, "kl": loss.kl, "agreement": loss.agreement}
            row |= {"twin": one.twin, "perplexity": loss.perplexity}
            continue
        if one.trained is None:
            continue
        pieces = [w for w in windows(zoo, [BASE], heldout(one), WINDOW) if len(w) == WINDOW]
        row["perplexity"] = perplexity(scorer, one.name, pieces[:limit])
        if limit is None:
            row["difference"] = row["perplexity"] / one.trained - 1


def perplexity(scorer: Scorer, model: str, pieces: list[list[int]]) -> float:
    """Over all tokens of the windows but each one's first."""
    scores = [scorer.score(model, piece) for piece in pieces]
    return math.exp(-sum(float(s.sum(dtype="float64")) for s in scores) / sum(map(len, scores)))


def settings(sequences: int) -> EngineSettings:
    """Exact numbers on any machine; no model profits from another's pages."""
    return EngineSettings(
        device="cpu",
        dtype="float32",
        memory="1GiB",
        prefix_cache=False,
        max_sequences=sequences,
    )


def mix(zoo: Zoo, models: list[str]) -> dict[str, Any]:
    """One batch of all models, then each model alone, in the same engine."""
    engine = Engine(zoo, models, settings(len(models)))
    chains = zoo.chains(models)
    requests = [
        make_request(name, name, random_prompt(i, PROMPT, chains[name].vocab_size), ANSWER)
        for i, name in enumerate(models)
    ]
    together, _ = drive(engine, [requests])
    between = engine.stats()
    alone, _ = drive(engine, [[request] for request in requests])
    engine.check_books()
    stats = engine.stats()
    hops = sum(span.hops for span in between.spans)
    return {
        "weight_bytes": stats.weight_bytes,
        "weight_bytes_unshared": stats.weight_bytes_unshared,
        "num_blocks": stats.num_blocks,
        "tokens": sum(map(len, together.values())),
        "models_that_differ": [name for name in models if together[name] != alone[name]],
        "hops_mixed": hops,
        "hops_alone": sum(span.hops for span in stats.spans) - hops,
        "most_shared": max((len(span.models) for span in stats.spans), default=0),
    }


def measure(folder: Path, chosen: list[Variant], limit: int | None = None) -> dict[str, Any]:
    """Make the zoo in a folder and measure it."""
    zoo = Zoo(folder)
    rows = build(zoo, chosen)
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    mixed = mix(zoo, [one.name for one in chosen])
    judge(zoo, chosen, rows, limit)
    return {
        "models": rows,
        "disk_bytes": sum(files),
        "disk_bytes_files": file_bytes(chosen, rows),
        "disk_bytes_separate": sum(row["total_bytes"] for row in rows),
        "mixed": mixed,
    }


def is_sound(seen: dict[str, Any]) -> bool:
    """Whether every model answers as it does alone, and the exact ones as they were trained."""
    drifts = [abs(row.get("difference", 0.0)) for row in seen["models"]]
    return not seen["mixed"]["models_that_differ"] and max(drifts) <= TOLERANCE


def markdown(seen: dict[str, Any]) -> str:
    """The tables of the documentation."""
    mixed, count = seen["mixed"], len(seen["models"])
    disk, copies = seen["disk_bytes"], seen["disk_bytes_separate"]
    files = seen["disk_bytes_files"]
    memory, unshared = mixed["weight_bytes"], mixed["weight_bytes_unshared"]
    differing = ", ".join(mixed["models_that_differ"]) or "none"
    facts = [
        ("models", f"{count}"),
        ("on disk: the zoo, catalogue and all", f"{disk / MB:.1f} MB"),
        ("on disk: a file for each checkpoint and adapter", f"{files / MB:.1f} MB"),
        ("on disk: separate copies", f"{copies / MB:.1f} MB ({copies / disk:.1f} times)"),
        ("in memory: weights in the engine, fp32", f"{memory / MB:.1f} MB"),
        ("in memory: separate copies", f"{unshared / MB:.1f} MB ({unshared / memory:.1f} times)"),
        ("blocks; models on the most shared", f"{mixed['num_blocks']}; {mixed['most_shared']}"),
        (f"hops for {mixed['tokens']} tokens: mixed", f"{mixed['hops_mixed']}"),
        ("hops, model after model", f"{mixed['hops_alone']}"),
        ("models that answer otherwise in the mixed batch", differing),
    ]
    lines = ["| what | seen |", "|---|---:|", *(f"| {name} | {value} |" for name, value in facts)]
    columns = "model|kind|on|new bytes|share|added in|domain|perplexity|exact or loss"
    lines += ["", f"|{columns}|", "|---|---|---|---:|---:|---:|---|---:|---|"]
    return "\n".join([*lines, *map(_line, seen["models"])])


def _line(row: dict[str, Any]) -> str:
    if row["exact"]:
        verdict = "exact"
        if "difference" in row:
            verdict += f", {row['difference']:+.3%} of as trained"
    else:
        verdict = f"`{row['twin']}`: {row['rise']:+.2%}, {row['kl']:.4f}, {row['agreement']:.1%}"
    score = f"{row['perplexity']:.2f}" if "perplexity" in row else ""
    cells = (
        f"`{row['model']}`", row["kind"], f"`{row['base']}`" if row["base"] else "",
        f"{row['stored_bytes']:,}", f"{row['stored_bytes'] / row['total_bytes']:.1%}",
        f"{row['seconds_to_add']:.2f} s", row["domain"], score, verdict,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="A zoo of a base and 24 variants of all kinds.")
    parser.add_argument("--out", type=Path, default=Path("out/zoo-of-all-kinds.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = measure(Path(folder) / "zoo", variants())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
    print(markdown(seen))
    raise SystemExit(0 if is_sound(seen) else 1)


if __name__ == "__main__":
    main()
