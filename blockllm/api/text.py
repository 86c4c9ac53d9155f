"""What a model's text files become in the front end: its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from blockllm.api.template import ChatTemplate
from blockllm.api.tokenizer import TextTokenizer
from blockllm.zoo.text import TextFiles, find_text_files, load_tokenizer
from blockllm.zoo.text.files import SETTINGS, TOKENIZER_FILES, read_object
from blockllm.zoo.text.generation import read_generation
from blockllm.zoo.text.template import find_template
from blockllm.zoo.text.tokens import Tokens

Read = tuple[TextTokenizer | None, Tokens]


class Assets(Protocol):
    """Where a model's text files lie; blockllm.zoo.Zoo knows which of its base's an adapter has."""

    def asset(self, name: str, file: str) -> Path | None: ...


class ModelText(NamedTuple):
    """A model's tokenizer and template, if it has them, and its own defaults of sampling fields."""

    tokenizer: TextTokenizer | None
    template: ChatTemplate | None
    defaults: Mapping[str, float | int]


class TextReader:
    """Reads tokenizers and templates; models with the same files share theirs."""

    def __init__(self, shelf: Assets) -> None:
        self._shelf = shelf
        self._read: dict[bytes, Read] = {}
        # compiling a template takes milliseconds
        self._templates: dict[tuple[str, tuple[tuple[str, str], ...]], ChatTemplate] = {}

    def read(self, name: str, family: str) -> ModelText:
        """What a model of this name and family has.

        Raises CheckpointError naming the file when one is damaged.
        """
        files = find_text_files(partial(self._shelf.asset, name))
        tokenizer, tokens = self._tokenizer(files, family)
        source = find_template(files)
        template = source and self._template(source.text, tokens.texts)
        return ModelText(tokenizer, template, read_generation(files).sampling)

    def _template(self, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
        key = source, tuple(sorted(special_tokens.items()))
        if key not in self._templates:
            self._templates[key] = ChatTemplate(source, special_tokens)
        return self._templates[key]

    def _tokenizer(self, files: TextFiles, family: str) -> Read:
        key = _digest(files, family)
        if key not in self._read:
            tokenizer, tokens = load_tokenizer(files, family)
            self._read[key] = (tokenizer and TextTokenizer(tokenizer), tokens)
        return self._read[key]


def _digest(files: TextFiles, family: str) -> bytes:
    """Names what a tokenizer follows from."""
    settings = read_object(files, SETTINGS)
    settings.pop("chat_template", None)  # many fine-tunes differ in it only
    digest = hashlib.sha256(json.dumps([family, settings]).encode())
    for file in TOKENIZER_FILES:
        if file != SETTINGS:
            data = files[file].read_bytes() if file in files else b""
            digest.update(hashlib.sha256(data).digest())
    return digest.digest()
