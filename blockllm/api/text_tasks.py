"""What a worker does for the front end: a model's tokenizer and template work only here."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from blockllm.api.conversation import plain_messages
from blockllm.api.prompts import TEMPLATE, TOKENIZER, ChatPrompts
from blockllm.api.template import ChatTemplate
from blockllm.api.text_calls import LOAD_SECONDS, Chat, Decode, Encode, Open, TextContent
from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import BadRequest
from blockllm.workers.call import Handler, Handlers, Run
from blockllm.zoo.text import Tokens, load_tokenizer
from blockllm.zoo.text.decoding import decoding_part
from blockllm.zoo.text.files import TOKENIZER_FILES
from blockllm.zoo.text.template import find_template

MAX_KEPT = 64 << 20  # bytes of tokenizer files; in memory they take several times as much
MAX_TEMPLATES = 256  # of one tokenizer


def handlers() -> Handlers:
    """The tasks, over what this process has read."""
    tasks = _Tasks()
    return {
        "open": Handler(Open, tasks.open),
        "encode": Handler(Encode, tasks.encode),
        "chat": Handler(Chat, tasks.chat),
        "decode": Handler(Decode, tasks.decode),
    }


class _Read(NamedTuple):
    """What was made of one model's tokenizer files, which have so many bytes; templates by
    digest."""

    tokenizer: TextTokenizer | None
    decoding: str
    tokens: Tokens
    num_bytes: int
    templates: OrderedDict[str, ChatTemplate]
    prompts: dict[str, ChatPrompts]


class _Tasks:
    """Keeps what was asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Read] = OrderedDict()  # by digest of the tokenizer

    def open(self, arguments: Open, run: Run) -> str:
        """Read everything; the decoding part, if it is wanted."""
        read = self._read(arguments.content, run)
        if arguments.content.template:
            _template(read, arguments.content, run)
        return read.decoding if arguments.wants_decoding else ""

    def encode(self, arguments: Encode, run: Run) -> list[int]:
        """Ids of a text."""
        tokenizer = _tokenizer(self._read(arguments.content, run))
        run.at(TOKENIZER, arguments.seconds)
        if arguments.max_context is not None:
            tokenizer.check_length(arguments.text, arguments.max_context, arguments.field)
        return tokenizer.encode(arguments.text, arguments.add_special, arguments.field)

    def chat(self, arguments: Chat, run: Run) -> list[int]:
        """Ids of a conversation."""
        read, key = self._read(arguments.content, run), arguments.content.template
        template = _template(read, arguments.content, run)
        if key not in read.prompts:
            read.prompts[key] = ChatPrompts(template, _tokenizer(read))
        return read.prompts[key].ids(
            plain_messages(arguments.messages, template.knows_developer),
            arguments.add_generation_prompt,
            arguments.variables,
            arguments.add_special,
            arguments.as_tokens,
            arguments.max_context,
            arguments.has_to_fit,
            lambda part, loads: run.at(part, LOAD_SECONDS if loads else arguments.seconds),
        )

    def decode(self, arguments: Decode, run: Run) -> str:
        """Text of ids."""
        tokenizer = _tokenizer(self._read(arguments.content, run))
        run.at(TOKENIZER, arguments.seconds)
        return tokenizer.decode(arguments.ids, skip_special=False)

    def _read(self, content: TextContent, run: Run) -> _Read:
        if content.tokenizer in self._kept:
            self._kept.move_to_end(content.tokenizer)
            return self._kept[content.tokenizer]
        run.at(TOKENIZER, LOAD_SECONDS)
        files = _paths(content)
        num_bytes = sum(files[file].stat().st_size for file in TOKENIZER_FILES if file in files)
        while self._kept and self._num_bytes() + num_bytes > MAX_KEPT:
            self._kept.popitem(last=False)
        tokenizer, tokens = load_tokenizer(files, content.family)
        made = TextTokenizer(tokenizer) if tokenizer is not None else None
        decoding = decoding_part(tokenizer) if tokenizer is not None else ""
        read = _Read(made, decoding, tokens, num_bytes, OrderedDict(), {})
        self._kept[content.tokenizer] = read
        return read

    def _num_bytes(self) -> int:
        return sum(read.num_bytes for read in self._kept.values())


def _template(read: _Read, content: TextContent, run: Run) -> ChatTemplate:
    key = content.template
    if key not in read.templates:
        run.at(TEMPLATE, LOAD_SECONDS)
        source = find_template(_paths(content))
        if source is None:
            raise BadRequest("the model has no chat template", "model")
        if len(read.templates) >= MAX_TEMPLATES:
            oldest, _ = read.templates.popitem(last=False)
            read.prompts.pop(oldest, None)
        read.templates[key] = ChatTemplate(source.text, read.tokens.texts)
    read.templates.move_to_end(key)
    return read.templates[key]


def _tokenizer(read: _Read) -> TextTokenizer:
    if read.tokenizer is None:
        raise BadRequest("the model has no tokenizer", "model")
    return read.tokenizer


def _paths(content: TextContent) -> dict[str, Path]:
    return {file: Path(path) for file, path in content.files.items()}
