"""The text files of a model, by the names they have in a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockllm.errors import CheckpointError
from blockllm.zoo.foreign import read_foreign
from blockllm.zoo.settings_reader import read_json

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION = "generation_config.json"

TOKENIZER_FILES = (TOKENIZER, SETTINGS, SPECIAL_TOKENS, ADDED_TOKENS)
TEXT_FILES = (*TOKENIZER_FILES, TEMPLATE, GENERATION)

# the largest published tokenizer.json has 33 MB
_MAX_BYTES = 128 << 20

# where each file lies, which may be under another name
TextFiles = Mapping[str, Path]


def find_text_files(find: Callable[[str], Path | None]) -> dict[str, Path]:
    """The text files that `find` has a path for."""
    return {file: path for file in TEXT_FILES if (path := find(file)) is not None}


def read_bytes(path: Path) -> bytes:
    """All bytes of a text file; raises CheckpointError."""
    return read_foreign(path, _MAX_BYTES)


def read_object(files: TextFiles, file: str) -> dict[str, Any]:
    """The JSON object in one of the files; empty if there is no such file.

    Raises CheckpointError, naming the file, when it is damaged.
    """
    if file not in files:
        return {}
    try:
        return read_json(files[file])
    except CheckpointError as error:  # the path may be a name by content, which says nothing
        raise CheckpointError(str(error).replace(str(files[file]), file)) from error


def without_nulls(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the object gives a value to."""
    return {key: value for key, value in document.items() if value is not None}
