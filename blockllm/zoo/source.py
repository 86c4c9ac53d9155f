"""Where a model comes from: a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from blockllm.errors import CheckpointError, ZooError
from blockllm.zoo.causes import GGUF

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.jinja"]
_UNWANTED = ["consolidated*", "original/*"]  # the same weights in their makers' own formats


def check_name(name: str) -> None:
    """Raise ZooError unless `name` can be a model's name."""
    if not _NAME.fullmatch(name):
        raise ZooError(
            f"{name[:100]!r} cannot be a model's name: use 1 to 96 letters, digits, '.', '_' or "
            "'-', and begin with a letter or digit"
        )


def find_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; downloads a hub repository such as `org/model` into the hub's
    cache if no such folder exists. Raises CheckpointError if there is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        what = GGUF if folder.suffix == ".gguf" else "a file; give the folder it lies in"
        raise CheckpointError(f"{folder} is {what}")
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"no folder {str(source)!r}")
    return _download(source)


def _download(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"no folder {repository!r}; to download it from the Hugging Face hub, "
            "pip install 'blockllm[hub]'"
        ) from error
    try:
        folder = snapshot_download(repository, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except Exception as error:  # the hub's client raises many unrelated types
        summary = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(
            f"no folder {repository!r}, and the hub did not give it: {summary[0]}"
        ) from error
    if not any(Path(folder).glob("*.safetensors")):
        raise CheckpointError(
            f"the hub's repository {repository!r} has no .safetensors file; weights in other "
            "formats (.bin, .gguf, …) are not fetched"
        )
    return Path(folder)
