"""Tokenizer and generation files of a model: small, copied whole, named by content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from blockllm.errors import ZooError
from blockllm.zoo.folder import Folder
from blockllm.zoo.foreign import is_there
from blockllm.zoo.staging import Stage
from blockllm.zoo.text.files import (
    ADDED_TOKENS,
    SETTINGS,
    SPECIAL_TOKENS,
    TEMPLATE,
    TEXT_FILES,
    TOKENIZER,
    read_bytes,
)

ASSET_FILES = TEXT_FILES
# files that speak about other files: a model that brings one does without its base's
_BESIDE = {
    TEMPLATE: (SETTINGS,),  # which may hold the template
    SPECIAL_TOKENS: (SETTINGS,),
    ADDED_TOKENS: (SETTINGS, TOKENIZER),
}


def copy_assets(source: Path, scratch: Path) -> dict[str, Path]:
    """Copies of the asset files of a checkpoint folder: what is checked is what is stored. Raises
    CheckpointError for what is there and cannot be read."""
    found = {}
    for file in ASSET_FILES:
        if is_there(source / file):
            found[file] = scratch / file
            found[file].write_bytes(read_bytes(source / file))
    return found


def store_assets(
    files: Mapping[str, Path], folder: Folder, stage: Stage
) -> tuple[dict[str, str], list[tuple[Path, Path]]]:
    """Copy asset files into a stage.

    Returns the stored name of each file, and the moves that publish them.
    """
    names: dict[str, str] = {}
    moves: list[tuple[Path, Path]] = []
    for file, path in files.items():
        data = read_bytes(path)
        names[file] = asset_name(data, Path(file).suffix)
        final = folder.asset(names[file])
        if not final.exists():
            moves.append((_write(stage.new_temporary(), data), final))
    return names, moves


def asset_name(data: bytes, suffix: str) -> str:
    """Name of an asset: the hash of its bytes and the suffix it came with."""
    return f"{blake3(data).hexdigest()}{suffix}"


def check_asset(file: str) -> None:
    """Raise ZooError for a file that the zoo does not keep."""
    if file not in ASSET_FILES:
        raise ZooError(f"the zoo keeps no file {file!r} (kept: {', '.join(ASSET_FILES)})")


def find_asset(file: str, found: list[dict[str, str]]) -> str | None:
    """Stored name of an asset of a model: its own, or of the nearest model it is based on."""
    for own in found:
        if file in own or any(beside in own for beside in _BESIDE.get(file, ())):
            return own.get(file)
    return None


def find_files(
    own: Mapping[str, Path], base: list[dict[str, str]], folder: Folder
) -> dict[str, Path]:
    """All asset files of a model with these own ones; `base` are the stored names of those of what
    it is based on, nearest first."""
    names = [dict.fromkeys(own, ""), *base]
    found = dict(own)
    for file in ASSET_FILES:
        stored = find_asset(file, names)
        if stored:
            found[file] = folder.asset(stored)
    return found


def has_own(own: Mapping[str, Path], base: list[dict[str, str]], folder: Folder) -> bool:
    """Whether a model with these own files has others, byte by byte, than what it is based on."""
    if find_files(own, base, folder).keys() != find_files({}, base, folder).keys():
        return True
    return any(
        asset_name(read_bytes(path), Path(file).suffix) != find_asset(file, base)
        for file, path in own.items()
    )


def _write(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path
