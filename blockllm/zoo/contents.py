"""What a folder holds: a full checkpoint or an adapter, or neither and why."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.causes import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, INDEX, WEIGHTS, explain
from blockllm.zoo.foreign import is_there, read_start
from blockllm.zoo.settings_reader import SettingsReader, read_json

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER = 1024  # bytes
_READ = (".json", ".safetensors", ".jinja", ".model", ".bin")


class Contents(NamedTuple):
    """What is to be read of a folder, and sentences about the rest of it."""

    is_adapter: bool
    notes: tuple[str, ...] = ()


def look_at(folder: Path) -> Contents:
    """Whether a folder is to be read as an adapter or as a full checkpoint. Reads no weights.

    Raises CheckpointError with the cause for one that is neither.
    """
    _refuse_pointers(folder)
    if is_there(folder / "modules.json"):
        raise UnsupportedModel(
            f"{folder}: a sentence-transformers folder: its model embeds texts and continues none"
        )
    has_weights = is_there(folder / WEIGHTS) or is_there(folder / INDEX)
    if is_there(folder / ADAPTER_CONFIG):
        return _adapter(folder, has_weights)
    if not is_there(folder / CONFIG):
        raise explain(folder, CONFIG)
    return Contents(is_adapter=False)


def _adapter(folder: Path, has_weights: bool) -> Contents:
    config = SettingsReader(read_json(folder / ADAPTER_CONFIG), ADAPTER_CONFIG)
    if "peft_type" not in config or not has_weights:
        return Contents(is_adapter=True)
    if is_there(folder / ADAPTER_WEIGHTS):
        note = f"{folder.name} holds a full checkpoint too, which was not read: the adapter was"
        return Contents(True, (note,))
    note = f"{ADAPTER_CONFIG} was not read: there is no adapter beside it, but a merged model"
    return Contents(False, (note,))


def _refuse_pointers(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        small = path.suffix in _READ and path.is_file() and path.stat().st_size <= _MAX_POINTER
        if small and read_start(path, len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{folder}: {path.name} is a pointer of Git LFS and not the file: run "
                "`git lfs pull` there, or download the folder with the hub's own tool"
            )
