"""Write many models of three bases, as a zoo and as GGUF files for llama.cpp's router.

    python -m tools.studies.make_many out/many [--models 40 --layers 16 --hidden 512]

The bases are a Llama, a Qwen 2 and a Qwen 3 with random weights. Their siblings in turn: full
fine-tunes of the upper quarter of the layers, LoRA adapters, full fine-tunes of every tensor. All
of it is fp32 and follows from the sizes, so it is written once into a folder that bears their
digest. The router gets fine-tunes as files of their own, adapters as adapters of their base's file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from blockllm.zoo import Zoo
from tools.studies import bench_family, gguf_files
from tools.studies.bench_family import Kind, Shape

BASES: tuple[Kind, ...] = ("llama", "qwen2", "qwen3")
Way = Literal["base", "upper", "lora", "whole"]
# how the models of one base follow one another; then again from the second on
ORDER: tuple[Way, ...] = (
    *("base", "upper", "lora", "whole", "upper", "lora", "upper"),
    *("upper", "lora", "whole", "upper", "lora", "upper"),
)


class Model(NamedTuple):
    """One of the many: how it was made of which base; its weights without sharing, in bytes."""

    name: str
    way: Way
    base: str
    seed: int
    nbytes: int = 0


class Family(NamedTuple):
    """What was written."""

    folder: Path
    models: tuple[Model, ...]

    @property
    def zoo(self) -> Path:
        """The zoo that holds all."""
        return self.folder / "zoo"

    @property
    def presets(self) -> Path:
        """What the router reads."""
        return self.folder / "presets.ini"

    def source(self, model: Model) -> Path:
        """The checkpoint or adapter folder."""
        return self.folder / "sources" / model.name

    def ggufs(self, model: Model) -> list[Path]:
        """The files that the router maps for a model."""
        own = self.folder / "ggufs" / f"{model.name}.gguf"
        return [own.with_name(f"{model.base}.gguf"), own] if model.way == "lora" else [own]


def plan_models(count: int) -> list[Model]:
    """`count` models, dealt to the bases in turn."""
    models: list[Model] = []
    for number in range(count):
        kind, place = BASES[number % len(BASES)], number // len(BASES)
        again = len(ORDER) - 1
        way = ORDER[place if place < len(ORDER) else 1 + (place - 1) % again]
        base = f"{kind}-base"
        seed = sum(one.base == base and one.way == way for one in models)
        models.append(Model(base if way == "base" else f"{kind}-{way}{seed}", way, base, seed))
    return models


def make_many(out: Path, count: int, layers: int, hidden: int, vocab: int) -> Family:
    """Write the family under `out`, unless it is there already."""
    code = [
        Path(file).read_text() for file in (bench_family.__file__, gguf_files.__file__, __file__)
    ]
    digest = hashlib.sha256(repr((count, layers, hidden, vocab, code)).encode()).hexdigest()[:12]
    folder = out.absolute() / digest
    ready = folder / "models.json"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        made = Family(folder, tuple(plan_models(count)))
        (folder / "ggufs").mkdir(parents=True)
        shapes = {
            f"{kind}-base": Shape(layers, hidden, vocab, kind=kind, seed=number)
            for number, kind in enumerate(BASES)
        }
        _write_sources(made, shapes)
        _write_forms(made)
        models = [one._replace(nbytes=_weigh(made, one)) for one in made.models]
        ready.write_text(json.dumps([one._asdict() for one in models], indent=1) + "\n")
    return Family(folder, tuple(Model(**one) for one in json.loads(ready.read_text())))


def _write_sources(family: Family, shapes: dict[str, Shape]) -> None:
    tokenizer = bench_family.train_tokenizer(next(iter(shapes.values())).vocab)
    for base, shape in shapes.items():
        tensors = bench_family.random_base(shape)
        for model in (one for one in family.models if one.base == base):
            folder = family.source(model)
            if model.way == "lora":
                adapter = bench_family.lora(shape, model.seed)
                root = folder.with_name(base)
                bench_family.save_adapter(folder, shape, adapter, root)
                continue
            tuned = tensors
            if model.way == "upper":
                first = shape.layers - shape.layers // 4
                tuned = bench_family.fine_tune(tensors, shape, first, model.seed)
            if model.way == "whole":
                tuned = bench_family.whole_fine_tune(tensors, shape, model.seed)
            bench_family.save_checkpoint(folder, shape, tuned, tokenizer)


def _write_forms(family: Family) -> None:
    """The zoo, the GGUF files, and the router's list of them."""
    zoo, sections = Zoo(family.zoo), ["version = 1\n"]
    for model in family.models:
        source, files = family.source(model), family.ggufs(model)
        is_adapter = model.way == "lora"
        zoo.add(model.name, source, base=model.base if is_adapter else None)
        if is_adapter:
            gguf_files.write_adapter(source, source.with_name(model.base), files[-1])
        else:
            gguf_files.write_checkpoint(source, files[-1])
        keys = ("model", "lora")
        lines = [f"{key} = {file}" for key, file in zip(keys, files, strict=False)]
        sections.append("\n".join([f"[{model.name}]", *lines, ""]))
        print(model.name, flush=True)
    family.presets.write_text("\n".join(sections))


def _weigh(family: Family, model: Model) -> int:
    """Bytes of the weights that a model needs alone."""
    folders = {family.source(model), family.source(model).with_name(model.base)}
    if model.way != "lora":
        folders = {family.source(model)}
    return sum(file.stat().st_size for one in folders for file in one.glob("*.safetensors"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides the family."""
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)


def main() -> None:
    """Read the command line and write the family."""
    parser = argparse.ArgumentParser(description="Write many models of three bases.")
    parser.add_argument("out", type=Path)
    add_arguments(parser)
    given = parser.parse_args()
    family = make_many(given.out, given.models, given.layers, given.hidden, given.vocab)
    print(family.folder)


if __name__ == "__main__":
    main()
