"""What is found out about a model's text files when it is added: read once, checked whole."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from tokenizers import Tokenizer

from blockllm.zoo.text.files import GENERATION, TOKENIZER, TOKENIZER_FILES, TextFiles
from blockllm.zoo.text.generation import read_generation
from blockllm.zoo.text.loading import load_tokenizer
from blockllm.zoo.text.template import check_template
from blockllm.zoo.text.tokens import Tokens

_NO_TOKENIZER = f"no {TOKENIZER}: requests with text will be refused, those with token ids work"


class TextFacts(NamedTuple):
    """Tokens that end an answer, how many ids the tokenizer has (0: it is another model's, or
    there is none), and sentences about the files."""

    ends: tuple[int, ...] = ()
    num_ids: int = 0
    notes: tuple[str, ...] = ()

    def ends_within(self, rows: int) -> tuple[int, ...]:
        """Each end token once, if an embedding of so many rows has it."""
        return tuple(token for token in dict.fromkeys(self.ends) if token in range(rows))

    def notes_of(self, rows: int) -> tuple[str, ...]:
        """Sentences about a model whose embedding has so many rows."""
        strangers = {token for token in self.ends if token not in range(rows)}
        notes = [
            f"end token {token} is none of the model's tokens, which are 0 to {rows - 1}: ignored"
            for token in sorted(strangers)
        ]
        if self.num_ids > rows:
            notes.append(
                f"the tokenizer has ids up to {self.num_ids - 1}, the model only tokens 0 to "
                f"{rows - 1}: text that needs others will be refused"
            )
        return *self.notes, *notes


Probe = Callable[[TextFiles, str], None]


def read_facts(
    files: TextFiles, own: Collection[str], family: str, probe: Probe | None = None
) -> TextFacts:
    """The facts of a model with these files; `own` are those it brings itself, the others are of
    the model it is based on. `probe` tries them first, in a process with limits.

    Raises CheckpointError, naming the file, when one is damaged.
    """
    if probe is not None:
        probe(files, family)
    tokenizer, tokens = load_tokenizer(files, family)
    check_template(files)
    generation = read_generation(files)
    ends: list[int] = []
    notes = [] if tokenizer is not None else [_NO_TOKENIZER]
    num_ids = 0
    if GENERATION in own:
        ends += generation.ends
        notes += generation.notes
    if tokenizer is not None and any(file in own for file in TOKENIZER_FILES):
        ends += _end(tokenizer, tokens)
        num_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    return TextFacts(tuple(ends), num_ids, tuple(notes))


def _end(tokenizer: Tokenizer, tokens: Tokens) -> list[int]:
    """The id of what tokenizer files call the end of a text."""
    token = tokens.texts.get("eos_token")
    index = None if token is None else tokenizer.token_to_id(token)
    return [] if index is None else [index]
