"""Text that models are measured or trained on, as windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.api.text import TextReader
from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import ZooError
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
    tokenizers = _tokenizers(zoo, models)
    ids, start = _encode(tokenizers[first], decoded)
    for other in others:
        if tokenizers[other] is not tokenizers[first]:
            has_file = zoo.asset(first, TOKENIZER) == zoo.asset(other, TOKENIZER)
            if not has_file or _encode(tokenizers[other], decoded) != (ids, start):
                raise ZooError(f"{first!r} and {other!r} have different tokenizers")
    step = max(1, size - len(start))
    return [start + ids[at : at + step] for at in range(0, len(ids), step)]


def _tokenizers(zoo: Zoo, models: Sequence[str]) -> dict[str, TextTokenizer]:
    reader = TextReader(zoo)
    found = {}
    for name in models:
        tokenizer = reader.read(name, zoo.card(name).family).tokenizer
        if tokenizer is None:
            raise ZooError(f"{name!r} came without {TOKENIZER}: its text cannot be tokenised")
        found[name] = tokenizer
    return found


def _encode(tokenizer: TextTokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids of the text, and of what stands before any text."""
    return tokenizer.encode(text, add_special=False), tokenizer.encode("", add_special=True)
