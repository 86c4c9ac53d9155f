"""What a model's text files become in the front end: its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from tokenizers import Tokenizer

from blockllm.api.text_calls import TextContent, open_call
from blockllm.api.tokenizer import TokenTable
from blockllm.errors import CheckpointError, ContentFault
from blockllm.workers.call import Call, R
from blockllm.zoo.text import TextFiles, find_text_files
from blockllm.zoo.text.files import SETTINGS, TOKENIZER_FILES, read_object
from blockllm.zoo.text.generation import read_generation
from blockllm.zoo.text.template import find_template


class Assets(Protocol):
    """Where a model's text files lie; blockllm.zoo.Zoo knows which of its base's an adapter has."""

    def asset(self, name: str, file: str) -> Path | None: ...


class Caller(Protocol):
    """Reads files for us; a SingleWorker or InProcess."""

    def call(self, call: Call[R]) -> R: ...


class ModelText(NamedTuple):
    """A model's text files, what makes text of its ids, if it has that, and its own defaults of
    sampling fields."""

    content: TextContent
    tokens: TokenTable | None
    defaults: Mapping[str, float | int]


class TextReader:
    """Has tokenizers and templates read once; models with the same files share what is kept."""

    def __init__(self, assets: Assets, caller: Caller) -> None:
        self._assets = assets
        self._caller = caller
        self._tables: dict[str, TokenTable | None] = {}  # by digest of the tokenizer
        self._sound: set[tuple[str, str]] = set()  # digests of tokenizers and templates

    def read(self, name: str, family: str) -> ModelText:
        """What a model of this name and family has.

        Raises CheckpointError naming the file when one is damaged, and for a template or tokenizer
        that breaks its limits.
        """
        files = find_text_files(partial(self._assets.asset, name))
        content = content_of(files, family)
        key = content.tokenizer, content.template
        try:
            if content.tokenizer not in self._tables:
                decoding = self._caller.call(open_call(content, wants_decoding=True))
                table = TokenTable(Tokenizer.from_str(decoding)) if decoding else None
                self._tables[content.tokenizer] = table
            elif key not in self._sound:
                self._caller.call(open_call(content, wants_decoding=False))
        except ContentFault as fault:
            raise CheckpointError(f"its {fault.part} {fault}") from fault
        self._sound.add(key)
        return ModelText(content, self._tables[content.tokenizer], read_generation(files).sampling)


def content_of(files: TextFiles, family: str) -> TextContent:
    """A model's text files by what follows from them; "" for a tokenizer or template that it does
    not have."""
    source = find_template(files)
    template = hashlib.sha256(source.text.encode()).hexdigest() if source is not None else ""
    paths = {file: str(path) for file, path in files.items()}
    return TextContent(paths, family, _digest(files, family), template)


def _digest(files: TextFiles, family: str) -> str:
    """Names what a tokenizer follows from."""
    settings = read_object(files, SETTINGS)
    settings.pop("chat_template", None)  # many fine-tunes differ in it only
    digest = hashlib.sha256(json.dumps([family, settings]).encode())
    for file in TOKENIZER_FILES:
        if file != SETTINGS:
            data = files[file].read_bytes() if file in files else b""
            digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()
