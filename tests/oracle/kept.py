"""What the reference answered, kept by content, so that the suite need not ask it each time.

A file is named by all that an answer follows from: the checkpoint, its adapters, the prompt, the
versions of the libraries, and how they are called (reference.py). Anything else is computed.
`make oracle` computes all of them anew and writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from tests.oracle import reference
from tests.oracle.reference import Expected

FOLDER = Path(__file__).with_name("answers")
RENEW = os.environ.get("ORACLE_ANSWERS") == "renew"
Tensors = dict[str, torch.Tensor]
_LIKELY = 8  # log-probabilities kept of each token; tests compare five
_PATHS = ("_name_or_path", "base_model_name_or_path", "model_name")  # where a test puts its models


def expected(
    path: Path,
    adapters: Sequence[Path],
    prompt: Sequence[int],
    max_tokens: int,
    scale: float | None = None,
) -> Expected:
    """Greedy tokens of the checkpoint under its adapters, the last one scaled, and probabilities
    (logarithms) of the likely ones; the others are infinite, so that none can pass for equal."""

    def ask() -> Tensors:
        model = reference.load(path, *adapters)
        if scale is not None:
            reference.rescale(model, adapters[-1].name, scale)
        answer = reference.generate(model, prompt, max_tokens)
        top = answer.logprobs.topk(_LIKELY)
        return {
            "tokens": torch.tensor(answer.tokens, dtype=torch.int32),
            "likely": top.indices.to(torch.int32),  # [tokens, _LIKELY]
            "logprobs": top.values,  # [tokens, _LIKELY]
            "vocab": torch.tensor([answer.logprobs.shape[1]], dtype=torch.int32),
        }

    kept = remember(ask, path, adapters, "generate", list(prompt), max_tokens, scale)
    tokens: list[int] = kept["tokens"].tolist()
    rows = torch.full((len(tokens), int(kept["vocab"])), torch.inf)  # [tokens, vocab]
    rows.scatter_(1, kept["likely"].long(), kept["logprobs"])
    return Expected(tokens, rows)


def perplexity(
    path: Path, adapters: Sequence[Path], ids: Sequence[int], window: int, first: int
) -> float:
    """Of the checkpoint under its adapters over a text in windows that begin with token `first`."""

    def ask() -> Tensors:
        model = reference.load(path, *adapters)
        return {"perplexity": torch.tensor([reference.perplexity(model, ids, window, first)])}

    return float(
        remember(ask, path, adapters, "perplexity", list(ids), window, first)["perplexity"]
    )


def remember(
    ask: Callable[[], Tensors], path: Path, adapters: Sequence[Path], *question: object
) -> Tensors:
    """What `ask` gives, from its file if there is one. The question says all that was asked."""
    file = FOLDER / f"{_key(path, adapters, question)}.safetensors"
    if file.is_file() and not RENEW:
        return load_file(file)
    answer = ask()
    if RENEW:
        FOLDER.mkdir(exist_ok=True)
        save_file(answer, file)
    return answer


def _key(path: Path, adapters: Sequence[Path], question: tuple[object, ...]) -> str:
    digest = blake3(Path(reference.__file__).read_bytes())
    for name in ("torch", "transformers", "peft"):
        digest.update(version(name).partition("+")[0].encode())
    for folder in (path, *adapters):
        for name, content in _contents(folder):
            digest.update(blake3(name.encode()).digest() + blake3(content).digest())
    digest.update(repr(question).encode())
    return digest.hexdigest(16)


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What the reference reads of a folder, without the paths of this machine."""
    for file in sorted((*folder.glob("*config.json"), *folder.glob("*.safetensors"))):
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(_ordered(json.loads(content)), sort_keys=True).encode()
        yield file.name, content


def _ordered(document: dict[str, Any]) -> dict[str, Any]:
    """Without paths, and lists of names in order: they were sets when they were saved."""
    return {
        name: sorted(value) if isinstance(value, list) and isinstance(value[0], str) else value
        for name, value in document.items()
        if name not in _PATHS and value != []
    }
