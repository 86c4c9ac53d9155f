"""Greedy tokens of blockllm and of llama.cpp's router, model by model.

    python -m tools.studies.compare_answers --family out/many --llama-server BIN/llama-server

Both compute in fp32 and sum in other orders, so a token may differ where two are about equally
likely: the difference of their log-probabilities is shown.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np

from tools.studies.drive import write_report
from tools.studies.measure_residency import Study, add_load_arguments, open_study
from tools.studies.residency_servers import Running

PROMPT, ANSWER = 48, 24  # tokens


class Answer(NamedTuple):
    """A model's tokens, and by how much each was likelier than the second (log-probability)."""

    tokens: list[int]
    margins: list[float]


class Difference(NamedTuple):
    """Where two answers begin to differ, and by how much the first server's token was likelier."""

    model: str
    position: int
    margin: float


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON, get JSON. Raises HTTPError."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urlopen(Request(url, data, headers), timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def prompts(study: Study) -> dict[str, list[int]]:
    """Random token ids for every model."""
    random = np.random.default_rng(study.options.seed)
    vocab = study.options.vocab
    return {one.name: random.integers(3, vocab, PROMPT).tolist() for one in study.family.models}


def ours(study: Study) -> dict[str, Answer]:
    """What `blockllm serve` answers."""
    found = {}
    with Running(study.resident, study.options.logs / "answers-ours.log") as running:
        for name, prompt in prompts(study).items():
            asked = {"model": name, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0}
            asked |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 2}
            choice = ask(running.process.url + "/v1/completions", asked)["choices"][0]
            likely = [sorted(one.values())[-2:] for one in choice["logprobs"]["top_logprobs"]]
            margins = [high - low for low, high in likely]
            found[name] = Answer(choice["token_ids"], margins)
    return found


def peers(study: Study) -> dict[str, list[int]]:
    """What the router answers."""
    found = {}
    with Running(study.router(4), study.options.logs / "answers-router.log") as running:
        for name, prompt in prompts(study).items():
            asked = {"model": name, "prompt": prompt, "n_predict": ANSWER, "temperature": 0}
            asked |= {"ignore_eos": True, "return_tokens": True}
            found[name] = ask(running.process.url + "/completion", asked)["tokens"]
    return found


def differences(one: dict[str, Answer], other: dict[str, list[int]]) -> list[Difference]:
    """Of models whose answers differ."""
    found = []
    for name, (tokens, margins) in one.items():
        pairs = zip(tokens, other[name], strict=True)
        unequal = [place for place, (a, b) in enumerate(pairs) if a != b]
        if unequal:
            found.append(Difference(name, unequal[0], margins[unequal[0]]))
    return found


def main() -> None:
    """Read the command line, ask both, print."""
    parser = argparse.ArgumentParser(description="Greedy tokens of two servers.")
    add_load_arguments(parser)
    study = open_study(parser.parse_args())
    found = differences(ours(study), peers(study))
    count = len(study.family.models)
    print(f"{count - len(found)} of {count} models answer with the same {ANSWER} tokens")
    for one in found:
        print(f"{one.model}: differs at token {one.position}, margin {one.margin:.2e}")
    report = {"models": count, "differences": [one._asdict() for one in found]}
    write_report(study.options, "answers.json", report)


if __name__ == "__main__":
    main()
