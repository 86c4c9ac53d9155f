"""Text that models are measured or trained on, as windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import ZooError
from blockllm.zoo import Zoo


def windows(zoo: Zoo, models: Sequence[str], text: bytes, size: int) -> list[list[int]]:
    """The text's tokens, `size` at a time behind what the tokenizer puts before any text.

    Raises ZooError unless the models share one tokenizer and the text is UTF-8.
    """
    first = models[0]
    path = zoo.asset(first, "tokenizer.json")
    if path is None:
        raise ZooError(f"{first!r} came without tokenizer.json: its text cannot be tokenised")
    for other in models[1:]:
        if path != zoo.asset(other, "tokenizer.json"):
            raise ZooError(f"{first!r} and {other!r} have different tokenizers")
    tokenizer = TextTokenizer.load(path)
    try:
        ids = tokenizer.encode(text.decode("utf-8"), add_special=False)
    except UnicodeDecodeError as error:
        raise ZooError(f"the text is not UTF-8: {error}") from error
    start = tokenizer.encode("", add_special=True)
    step = max(1, size - len(start))
    return [start + ids[at : at + step] for at in range(0, len(ids), step)]
