"""Adding every model of a folder: full checkpoints first, so that adapters find their bases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from blockllm.errors import CheckpointError, ZooError
from blockllm.zoo.causes import ADAPTER_CONFIG, is_candidate
from blockllm.zoo.foreign import is_there
from blockllm.zoo.reports import AddReport, Progress, silent
from blockllm.zoo.zoo import Zoo

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


class Outcome(msgspec.Struct, frozen=True):
    """What became of one subfolder: a report, or why it was refused, or neither where the zoo has
    the model of that name from the same folder."""

    name: str
    source: str
    report: AddReport | None = None
    refused: str | None = None


def add_all(
    zoo: Zoo,
    folder: str | Path,
    base: str | None = None,
    format: Literal["int8"] | None = None,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Add each model and adapter in a subfolder of `folder`, named as the subfolder is. What is
    refused does not stop the others. `base` is for adapters, `format` for full checkpoints.

    Raises CheckpointError if no subfolder holds a model.
    """
    root = Path(folder).expanduser()
    found = sorted(_find(root), key=_is_adapter)
    known = {card.name: Path(card.root) for card in zoo.cards()} if zoo.exists() else {}
    for path in found:
        options = (base, progress) if _is_adapter(path) else (None, progress, format)
        if path.name in known and known[path.name].resolve() == path.resolve():
            yield Outcome(path.name, str(path))
            continue
        try:
            yield Outcome(path.name, str(path), zoo.add(path.name, path, *options))
        except ZooError as error:
            yield Outcome(path.name, str(path), refused=str(error))


def _find(root: Path) -> list[Path]:
    if not root.is_dir():
        raise CheckpointError(f"no folder {str(root)!r}")
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and _looks_like_model(path)]
    if found:
        return found
    if is_candidate(root):
        raise CheckpointError(f"{root} holds one model itself; add it with a name")
    raise CheckpointError(f"{root}: no subfolder holds a model or an adapter")


def _looks_like_model(folder: Path) -> bool:
    """Also where it cannot be added: then the refusal says why."""
    if folder.name.startswith("."):
        return False
    if is_candidate(folder):
        return True
    inside = list(folder.iterdir())
    return any(path.suffix in _WEIGHTS or (path.is_dir() and is_candidate(path)) for path in inside)


def _is_adapter(folder: Path) -> bool:
    return is_there(folder / ADAPTER_CONFIG)
