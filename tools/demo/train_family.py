"""Train the demonstration family: one small base, four fine-tunes of it and a
wider base, from standard-library text.

Step counts, seeds and file order are fixed, so the same machine and libraries repeat the result.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from tools.demo.training import corpus, members, report, tokens
from tools.demo.training.loop import Paused, Pieces, train
from tools.demo.training.members import BASE, MEMBERS, SMOKE_SIZE, Member, Size


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the family goes")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "blockllm-demo-family",
        help="where checkpoints and timings go",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[*(member.name for member in MEMBERS), "report"],
        help="just this member, from the saved base; repeatable; 'report' measures all of them",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take the trained base from the work folder instead of training it",
    )
    parser.add_argument(
        "--pause-after",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="stop a training after so long; the same command goes on from its checkpoint",
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny family in under a minute")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train_base(
    out: Path,
    work: Path,
    member: Member,
    size: Size,
    splits: dict[str, corpus.Split],
    resume: bool,
    pieces: Pieces,
) -> float:
    """Train the tokenizer and the base on general text; the domains stay unseen by the base."""
    kept, vocabulary, seconds = work / "base.safetensors", work / "tokenizer.json", 0.0
    if resume and kept.exists():
        # The weights mean nothing under any other tokenizer, even one of nearly the same text.
        tokenizer = Tokenizer.from_file(str(vocabulary))
        model = members.new_base(size, tokenizer, member.recipe.seed)
        model.load_state_dict(load_file(kept), strict=False)
    else:
        tokenizer = tokens.train_tokenizer(
            (text for split in splits.values() for text in split.train), size.vocabulary
        )
        model = members.new_base(size, tokenizer, member.recipe.seed)
        seconds = train_on_domain(member, model, tokenizer, size, splits, pieces)
        state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(state, kept)
        tokenizer.save(str(vocabulary))
    members.save(out, member, model)
    tokens.save_tokenizer(tokenizer, out / BASE, size.positions, members.chat_template(member))
    return seconds


def train_on_domain(
    member: Member,
    model: nn.Module,
    tokenizer: Tokenizer,
    size: Size,
    splits: dict[str, corpus.Split],
    pieces: Pieces,
) -> float:
    """Train one model on its own domain's text."""
    stream = tokens.encode_documents(tokenizer, splits[member.domain].train)
    print(f"{member.name}: {stream.numel()} tokens of {member.domain}", flush=True)
    start, recipe = tokens.token_id(tokenizer, tokens.START), member.recipe
    source = tokens.batches(stream, size.window, recipe.rows, start, recipe.seed)
    return train(member.name, model, source, recipe, pieces)


def train_fine_tune(
    out: Path, member: Member, size: Size, splits: dict[str, corpus.Split], pieces: Pieces
) -> float:
    """Train one member from the saved base; an adapter uses the base's tokenizer files."""
    tokenizer = Tokenizer.from_file(str(out / BASE / "tokenizer.json"))
    model = members.prepare(out, member)
    seconds = train_on_domain(member, model, tokenizer, size, splits, pieces)
    members.save(out, member, model)
    if not member.rank:
        template = members.chat_template(member)
        tokens.save_tokenizer(tokenizer, out / member.name, size.positions, template)
    members.check(out, member)
    return seconds


def train_one(
    out: Path,
    work: Path,
    member: Member,
    size: Size,
    splits: dict[str, corpus.Split],
    resume: bool,
    pieces: Pieces,
) -> None:
    """Train, save and check one member, and note its seconds for the report."""
    goes_on = pieces.path(member.name).exists()
    try:
        if member.name == BASE:
            seconds = train_base(out, work, member, size, splits, resume, pieces)
        else:
            seconds = train_fine_tune(out, member, size, splits, pieces)
    except Paused as paused:
        _note_seconds(work, member, paused.seconds, goes_on)
        raise
    if seconds:
        _note_seconds(work, member, seconds, goes_on)


def _note_seconds(work: Path, member: Member, seconds: float, goes_on: bool) -> None:
    timings = work / "seconds.json"
    noted = json.loads(timings.read_text(encoding="utf-8")) if timings.exists() else {}
    noted[member.name] = round(seconds) + (noted.get(member.name, 0) if goes_on else 0)
    timings.write_text(json.dumps(noted), encoding="utf-8")


def main() -> None:
    """Train what was asked for, then measure the family from its saved files."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    out, work = arguments.out, arguments.work / ("smoke" if arguments.smoke else "real")
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    size = SMOKE_SIZE if arguments.smoke else Size()
    family = members.smoke_members() if arguments.smoke else MEMBERS
    splits = corpus.load_splits(6_000, every=8) if arguments.smoke else corpus.load_splits()
    pieces = Pieces(work, arguments.pause_after)
    for member in family:
        if not arguments.only or member.name in arguments.only:
            try:
                train_one(out, work, member, size, splits, arguments.resume, pieces)
            except Paused as paused:
                raise SystemExit(f"{paused}; the same command goes on") from None
    if not arguments.only or "report" in arguments.only:
        measured = report.write(out, work, family, size, splits)
        if not arguments.smoke:
            report.require_gains(family, measured)


if __name__ == "__main__":
    main()
