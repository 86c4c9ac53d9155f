"""Measures the saved family and writes what a reader and a test need to measure it again."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from tools.demo.training import corpus, members, tokens
from tools.demo.training.loop import next_token_loss
from tools.demo.training.members import BASE, Member, Size

Perplexities = dict[str, dict[str, float]]

SAMPLED = (BASE, "frozen-lower", "lora-b")

README = """\
# The demonstration family

A Llama of {count:,} parameters (embeddings tied and included), four real fine-tunes of it and a
wider base (`wide`, {wide_count:,} parameters), all trained from the Python standard library's own
sources and documentation.
They are small: they write plausible text, not correct programs.

## Held-out perplexity

{table}

Lower is better; each model's own domain is in bold. No model, the base included, trained
on a held-out text or on a paragraph (of over 40 characters) repeated from one, and the
base trained on `general` alone. Measured on the saved files, read back in fp32, over
`heldout/<domain>.txt` in whole
windows of {window} tokens that each begin with `<s>`; `perplexity.json` has the numbers.

| Domain | Text |
|---|---|
| `general` | the rest of the standard library |
| `topics` | prose of the language reference (`pydoc_data.topics`) |
| `network` | `email`, `http`, `urllib`, `xmlrpc`, `smtplib`, `ssl` and their like |
| `interface` | `tkinter`, `turtle`, `turtledemo`, `curses` |
| `concurrency` | `asyncio`, `concurrent`, `multiprocessing`, `threading` and their like |

## How it was made

    python -m tools.demo.train_family --out demo

Machine: {machine}, no GPU; Python {python}, PyTorch {torch}, transformers {transformers}.
Training seconds: {seconds}.
Steps: {steps}.

The base was rounded to bf16 first and every fine-tune started from the rounded base:
`frozen-lower` shares its embeddings, its lower two thirds of the layers and its last norm
with the base byte for byte, while `full` shares no tensor. Full models are bf16, adapters
fp32. Another Python version has other text and gives other models.

`wide` has {hidden} dimensions where the base has {narrow_hidden}, and {intermediate} MLP channels
where the base has {narrow_intermediate}; layers, heads and tokenizer are the same. It was grown
from the base (new dimensions start at zero, so it began as the same function) and then trained on
`general` with every tensor free. No tensor is the base's.
It stands for a family's second size where blocks of two sizes are stitched
(docs/stitching.md); two bases from different seeds would be further apart.

## Sample completions

`prompts.json` has one prompt for each model.

"""


def perplexity(model: nn.Module, tokenizer: Tokenizer, text: str, window: int) -> float:
    """Perplexity over whole windows of the text, each opened by ``<s>``."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    rows = tokens.windows(ids, window, tokens.token_id(tokenizer, tokens.START))
    with torch.inference_mode():
        losses = [
            next_token_loss(model, batch).item() * len(batch) for batch in torch.split(rows, 4)
        ]
    return math.exp(sum(losses) / len(rows))


def complete(
    model: Any, tokenizer: Tokenizer, prompt: str, new: int, temperature: float = 0.0
) -> str:
    """The prompt continued; at temperature 0 always by the likeliest token."""
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    torch.manual_seed(0)
    choice: dict[str, Any] = {"do_sample": False}
    if temperature:
        choice = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 0.95}
    with torch.inference_mode():
        result = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            pad_token_id=tokens.token_id(tokenizer, tokens.PADDING),
            **choice,
        )
    text: str = tokenizer.decode(result[0].tolist())
    return text


def write(
    out: Path,
    work: Path,
    family: tuple[Member, ...],
    size: Size,
    splits: dict[str, corpus.Split],
) -> Perplexities:
    """Write the held-out texts, perplexities, prompts and README from the saved files."""
    tokenizer = Tokenizer.from_file(str(out / BASE / "tokenizer.json"))
    (out / "heldout").mkdir(exist_ok=True)
    for domain, split in splits.items():
        (out / "heldout" / f"{domain}.txt").write_text(split.heldout, encoding="utf-8")
    measured: Perplexities = {}
    samples: list[str] = []
    for member in family:
        model = members.load_member(out, member)
        measured[member.name] = _measure(model, tokenizer, size, splits)
        print(member.name, measured[member.name], flush=True)
        if member.name in SAMPLED:
            samples += _samples(member, model, tokenizer)
    domains = {member.name: member.domain for member in family}
    contents = {"window": size.window, "domain_of": domains, "perplexity": measured}
    _write_json(out / "perplexity.json", contents)
    prompts = {member.name: member.prompt for member in family if not member.growth}
    _write_json(out / "prompts.json", prompts)
    timings = json.loads((work / "seconds.json").read_text(encoding="utf-8"))
    readme = _readme(out, family, size, measured, timings) + "\n".join(samples)
    (out / "README.md").write_text(readme, encoding="utf-8")
    return measured


def _measure(
    model: nn.Module, tokenizer: Tokenizer, size: Size, splits: dict[str, corpus.Split]
) -> dict[str, float]:
    return {
        domain: round(perplexity(model, tokenizer, split.heldout, size.window), 3)
        for domain, split in splits.items()
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _samples(member: Member, model: nn.Module, tokenizer: Tokenizer) -> list[str]:
    """One completion by the likeliest token and one drawn at temperature 0.7."""
    lines = []
    for temperature in (0.0, 0.7):
        text = complete(model, tokenizer, member.prompt, 96, temperature)
        lines += [f"`{member.name}`, temperature {temperature:g}:", "", "````text"]
        lines += [line.rstrip() for line in text.rstrip().splitlines()] + ["````", ""]
    return lines


def require_gains(family: tuple[Member, ...], measured: Perplexities) -> None:
    """A fine-tune that does not beat the base on its own domain demonstrates nothing."""
    for member in family:
        own, base = measured[member.name][member.domain], measured[BASE][member.domain]
        if member.name != BASE and own >= base:
            raise RuntimeError(f"{member.name}: {own} is not below the base's {base}")


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _table(family: tuple[Member, ...], measured: Perplexities) -> list[str]:
    lines = [
        "| Model | How it was made | " + " | ".join(corpus.DOMAINS) + " |",
        "|---|---|" + "---:|" * len(corpus.DOMAINS),
    ]
    for member in family:
        kind = member.kind
        if member.rank:
            targets = "all seven linears" if len(member.targets) == 7 else ", ".join(member.targets)
            kind = f"LoRA, rank {member.rank}, {targets}"
        cells = [
            f"**{value:.2f}**" if domain == member.domain else f"{value:.2f}"
            for domain, value in measured[member.name].items()
        ]
        lines.append(f"| `{member.name}` | {kind} | " + " | ".join(cells) + " |")
    return lines


def _readme(
    out: Path,
    family: tuple[Member, ...],
    size: Size,
    measured: Perplexities,
    timings: dict[str, int],
) -> str:
    wide = next(member for member in family if member.growth)
    assert wide.growth
    return README.format(
        count=_count(members.load_base(out)),
        wide_count=_count(members.load_member(out, wide)),
        hidden=wide.growth.hidden,
        intermediate=wide.growth.intermediate,
        narrow_hidden=size.hidden,
        narrow_intermediate=size.intermediate,
        table="\n".join(_table(family, measured)),
        window=size.window,
        machine=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        seconds=", ".join(f"`{m.name}` {timings.get(m.name, 0)}" for m in family),
        steps=", ".join(f"`{m.name}` {m.recipe.steps}" for m in family),
    )
