"""Adapter configurations of every kind, with their tensors renamed, and whole adapter folders."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

from blockllm.errors import ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.adapters.kinds import AdapterKind, choose_kind
from blockllm.zoo.adapters.plan import Computed, Layers
from blockllm.zoo.arrays import Weights
from blockllm.zoo.checkpoint import Source, open_adapter
from tools.campaigns import makings
from tools.campaigns.documents import put, read_document, seeds_of, words_of
from tools.campaigns.draws import Draws, flipped
from tools.campaigns.oracle import Target

CONFIG = "adapter_config.json"
MAX_COMPUTED = 4  # tensors of a plan that are computed, the first ones


class _Intact(NamedTuple):
    """An adapter on disk, its tensors as they are read, and how it says what it is."""

    folder: Path
    tensors: dict[str, Source]
    document: object


def adapter_config(scratch: Path) -> Target:
    """The configuration of an adapter beside its tensors, to the plan and what it computes."""
    zoo = makings.zoo(scratch)
    layers, weights = zoo.layers(makings.BASE), Weights(zoo.layers(makings.BASE), zoo.pack_path)
    folder = scratch / "adapter-config"
    folder.mkdir(exist_ok=True)
    intact = [_open(makings.adapter(scratch, kind)) for kind in makings.kinds()]
    documents = [one.document for one in intact]
    words = [*words_of(documents), ".*", "q_proj|v_proj", "(a+)+b", "^q", "layers.0", "all", "lora"]

    def run(data: bytes) -> None:
        draws = Draws(data)
        one = draws.pick(intact)
        tensors = _renamed(one.tensors, draws)
        put(folder / CONFIG, read_document(draws.rest(), [one.document], words))
        _plan(choose_kind(folder), tensors, layers, weights)

    seeds = [bytes([i, 0, *seed]) for i in range(len(intact)) for seed in seeds_of([documents[i]])]
    return Target(tuple(seeds), run)


def _open(folder: Path) -> _Intact:
    kind = choose_kind(folder)
    # never closed: they are read for as long as the process runs
    return _Intact(
        folder,
        open_adapter(folder, kind.files, kind.saving).tensors,
        makings.document(folder / CONFIG),
    )


def _plan(kind: AdapterKind, tensors: dict[str, Source], layers: Layers, weights: Weights) -> None:
    plan = kind.read(tensors, layers)
    assert plan.nbytes >= 0
    parts = [part for addition in plan.additions for part in addition.parts.values()]
    computed = [part for part in (*parts, *plan.replaced.values()) if isinstance(part, Computed)]
    for part in computed[:MAX_COMPUTED]:
        assert len(part.read(weights)) == part.entry.nbytes


def _renamed(tensors: dict[str, Source], draws: Draws) -> dict[str, Source]:
    """The tensors, some of them missing, exchanged, or under names with other parts."""
    changed = dict(tensors)
    for _ in range(draws.below(4)):
        if not changed:
            break
        one, other = draws.pick(list(changed)), draws.pick(list(changed))
        kind = draws.below(4)
        if kind == 0:
            del changed[one]
        elif kind == 1:
            changed[one], changed[other] = changed[other], changed[one]
        elif kind == 2:
            changed[f"{one}{draws.text(['.weight', '.bias', 'x'])}"] = changed[one]
        else:
            pieces = one.split(".")
            pieces[draws.below(len(pieces))] = draws.text(["0", "99", "-1", "weight", "lora_A"])
            changed[".".join(pieces)] = changed.pop(one)
    return changed


def adapter_folder(scratch: Path) -> Target:
    """A whole folder of any adapter, added: taken, or refused with nothing changed."""
    root = scratch / "zoo-for-adapters"
    zoo = Zoo(root)
    if not zoo.exists():
        zoo.add(makings.BASE, makings.base(scratch))
    before, copy = _files(root), scratch / "adapter-folder"
    intact = [makings.adapter(scratch, kind) for kind in makings.kinds()]
    documents = [makings.document(folder / CONFIG) for folder in intact]
    words = words_of(documents)

    def run(data: bytes) -> None:
        draws = Draws(data)
        which = draws.below(len(intact))
        _copy(intact[which], copy, draws)
        put(copy / CONFIG, read_document(draws.rest(), [documents[which]], words))
        try:
            zoo.add("fuzz", copy, base=makings.BASE)
        except ZooError:
            assert _files(root) == before, "a refused adapter changed the zoo"
            raise
        zoo.chain("fuzz")
        zoo.remove("fuzz")
        zoo.gc()

    seeds = [bytes([i, 3, *seed]) for i in range(len(intact)) for seed in seeds_of([documents[i]])]
    return Target(tuple(seeds), run)


def _copy(source: Path, target: Path, draws: Draws) -> None:
    """The adapter's files; at times the weights' header or bytes are damaged, or a file lacks."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            data, kind = path.read_bytes(), draws.below(4)
            if kind == 0:
                data = flipped(data, Draws(draws.take(6)))
            if kind != 1 or draws.below(8):
                put(target / path.name, data)
    if not draws.below(16):
        put(target / draws.pick(["config.json", "model.safetensors", "tokenizer.json"]), b"{}")


def _files(root: Path) -> set[str]:
    """Files of a zoo that a model's weights and texts lie in."""
    with contextlib.suppress(FileNotFoundError):
        return {
            str(path) for path in root.rglob("*") if path.is_file() and ".sqlite-" not in path.name
        }
    return set()
