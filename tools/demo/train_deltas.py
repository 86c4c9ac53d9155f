"""Train the demonstration family's deltas: one small one of each kind, on the saved family.

Each must beat its base on held-out text of its domain. Step counts and seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tools.demo.training import corpus, tokens
from tools.demo.training.deltas import DELTAS, WINDOW, Tuned, load_parent
from tools.demo.training.loop import Paused, Pieces, train
from tools.demo.training.members import BASE
from tools.demo.training.report import perplexity

MEASURED = 512  # tokens of a window, as for the rest of the family


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the family is")
    parser.add_argument(
        "--only",
        action="append",
        choices=[tuned.name for tuned in DELTAS],
        help="just this one; repeatable",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "blockllm-demo-deltas",
        help="where paused trainings go",
    )
    parser.add_argument(
        "--pause-after",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="stop a training after so long; the same command goes on from its checkpoint",
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make(out: Path, tuned: Tuned, split: corpus.Split, pieces: Pieces) -> dict[str, Any]:
    """Train, measure and save one delta; returns its row of perplexity.json.

    Raises RuntimeError if it is no better than the base or than what it stands on.
    """
    tokenizer = Tokenizer.from_file(str(out / BASE / "tokenizer.json"))
    stream, recipe = tokens.encode_documents(tokenizer, split.train), tuned.recipe
    start = tokens.token_id(tokenizer, tokens.START)
    torch.manual_seed(recipe.seed)
    model = tuned.method.attach(load_parent(out, tuned.parent), stream)
    source = tokens.batches(stream, WINDOW, recipe.rows, start, recipe.seed)
    train(tuned.name, model, source, recipe, pieces)
    names = dict.fromkeys((BASE, tuned.parent))
    models = {tuned.name: model, **{name: load_parent(out, name) for name in names}}
    found = {
        name: round(perplexity(one, tokenizer, split.heldout, MEASURED), 3)
        for name, one in models.items()
    }
    print(tuned.name, tuned.domain, found, flush=True)
    if found[tuned.name] >= min(found[name] for name in names):
        raise RuntimeError(f"{tuned.name} is no better than the base or {tuned.parent}")
    folder = out / "deltas" / tuned.name
    shutil.rmtree(folder, ignore_errors=True)
    tuned.method.save(model, folder, tuned.parent)
    return {
        "kind": tuned.kind,
        "parent": tuned.parent,
        "domain": tuned.domain,
        "perplexity": found,
    }


def check_text(out: Path, splits: dict[str, corpus.Split]) -> None:
    """Stop where this Python's library would put held-out text of the family into training."""
    for domain, split in splits.items():
        if (out / "heldout" / f"{domain}.txt").read_text(encoding="utf-8") != split.heldout:
            raise SystemExit(
                f"this Python's library has other text of {domain} than the family was trained on; "
                "run tools/demo/train_family.py first"
            )


def main() -> None:
    """Train what was asked for; perplexity.json keeps the rows of the others."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    out, splits = arguments.out, corpus.load_splits()
    check_text(out, splits)
    path = out / "deltas" / "perplexity.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["deltas"] if path.exists() else {}
    for folder in (path.parent, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    pieces = Pieces(arguments.work, arguments.pause_after)
    for tuned in DELTAS:
        if arguments.only and tuned.name not in arguments.only:
            continue
        try:
            rows[tuned.name] = make(out, tuned, splits[tuned.domain], pieces)
        except Paused as paused:
            raise SystemExit(f"{paused}; the same command goes on") from None
        ordered = {one.name: rows[one.name] for one in DELTAS if one.name in rows}
        text = json.dumps({"window": MEASURED, "deltas": ordered}, indent=2) + "\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
