"""Where a model's chat template stands, and whether it can be read."""

from __future__ import annotations

from typing import NamedTuple

from blockllm.errors import CheckpointError
from blockllm.zoo.text.files import SETTINGS, TEMPLATE, TextFiles, read_bytes, read_object


class TemplateSource(NamedTuple):
    """A chat template's text and the file it stands in."""

    file: str
    text: str


def find_template(files: TextFiles) -> TemplateSource | None:
    """chat_template.jinja, or tokenizer_config.json's `chat_template`: a text, or several by name,
    of which the one named "default" counts.

    Raises CheckpointError, naming the file, when that is none.
    """
    if TEMPLATE in files:
        try:
            return TemplateSource(TEMPLATE, read_bytes(files[TEMPLATE]).decode())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{TEMPLATE}: not UTF-8: {error}") from error
    found = read_object(files, SETTINGS).get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict) and "name" in entry]
        found = next((e.get("template") for e in reversed(named) if e["name"] == "default"), None)
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{SETTINGS}: chat_template: expected a string, got {found!r:.60}")
    return None if found is None else TemplateSource(SETTINGS, found)


def check_template(files: TextFiles) -> None:
    """Raise CheckpointError, naming the file, when the model's chat template cannot be read."""
    from blockllm.zoo.text.dialect import Dialect  # takes a tenth of a second to import

    source = find_template(files)
    if source is not None:
        try:
            Dialect().read(source.text)
        except CheckpointError as error:
            raise CheckpointError(f"{source.file}: not a usable chat template: {error}") from error
