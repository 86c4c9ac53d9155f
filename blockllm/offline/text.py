"""Text that models are measured or trained on, as windows of tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from blockllm.api.text import TextReader
from blockllm.api.text_calls import TASKS, TextContent, encode_call
from blockllm.api.texts import naming
from blockllm.errors import ZooError
from blockllm.workers.single import SingleWorker
from blockllm.zoo import Zoo
from blockllm.zoo.text.files import TOKENIZER


def windows(zoo: Zoo, models: Sequence[str], text: bytes, size: int) -> list[list[int]]:
    """The text's tokens, `size` at a time behind what the tokenizer puts before any text.

    Raises ZooError unless the models' tokenizers make the same of the text and it is UTF-8.
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZooError(f"the text is not UTF-8: {error}") from error
    first, *others = models
    reader = _Reader(zoo)
    ids, start = reader.encode(first, decoded)
    for other in others:
        if reader.tokenizer(other) != reader.tokenizer(first):
            has_file = zoo.asset(first, TOKENIZER) == zoo.asset(other, TOKENIZER)
            if not has_file or reader.encode(other, decoded) != (ids, start):
                raise ZooError(f"{first!r} and {other!r} have different tokenizers")
    step = max(1, size - len(start))
    return [start + ids[at : at + step] for at in range(0, len(ids), step)]


@functools.cache
def _worker() -> SingleWorker:
    """One for all texts of this process."""
    return SingleWorker(TASKS)


class _Reader:
    """The texts of a zoo's models, read in a worker."""

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._caller = _worker()
        self._reader = TextReader(zoo, self._caller)

    def tokenizer(self, name: str) -> str:
        """The digest of a model's tokenizer. Raises ZooError when it has none."""
        return self._content(name).tokenizer

    def encode(self, name: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of the text, and of what stands before any text."""
        content = self._content(name)
        with naming(name, None):
            ids = self._caller.call(encode_call(content, text, add_special=False, field="text"))
            start = self._caller.call(encode_call(content, "", add_special=True, field="text"))
        return ids, start

    def _content(self, name: str) -> TextContent:
        read = self._reader.read(name, self._zoo.card(name).family)
        if read.tokens is None:
            raise ZooError(f"{name!r} came without {TOKENIZER}: its text cannot be tokenised")
        return read.content
