"""The one way to load a tokenizer: as AutoTokenizer does, which ignores how it was last called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

from blockllm.errors import CheckpointError
from blockllm.zoo.text.files import (
    SETTINGS,
    TOKENIZER,
    TextFiles,
    read_bytes,
    read_object,
    without_nulls,
)
from blockllm.zoo.text.kinds import ASSUMED, is_byte_level, read_kind, rebuild
from blockllm.zoo.text.tokens import Tokens, read_tokens, text_of

# the library writes a tokenizer out id by id, whatever is between; the largest published
# vocabulary has 902,629
MAX_IDS = 1 << 21


class Loaded(NamedTuple):
    """A tokenizer, if the model has one, and the tokens its files name."""

    tokenizer: Tokenizer | None
    tokens: Tokens


def load_tokenizer(files: TextFiles, family: str) -> Loaded:
    """Read a tokenizer with every token that the files beside it name.

    `family` is the model's, which has a say in what AutoTokenizer makes of the files.
    Raises CheckpointError, naming the file, when one is damaged.
    """
    path = files.get(TOKENIZER)
    tokenizer = open_tokenizer(lambda: Tokenizer.from_buffer(read_bytes(path))) if path else None
    settings = without_nulls(read_object(files, SETTINGS))
    kind = read_kind(settings, family, tokenizer is not None and is_byte_level(tokenizer))
    padding = tokenizer.padding if tokenizer is not None else None
    assumed = {"pad_token": padding["pad_token"]} if padding else {}
    tokens = read_tokens(files, {**assumed, **ASSUMED.get(kind.name, {})})
    if tokenizer is not None:
        rebuild(tokenizer, kind)
        # written by the last call in training; prompts are neither cut nor padded
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = kind.split_special
        add_missing(tokenizer, tokens)
        with _usable(TOKENIZER):
            tokenizer.encode("")  # what it puts around a text may not be there
    return Loaded(tokenizer, tokens)


def open_tokenizer(make: Callable[[], Tokenizer], file: str = TOKENIZER) -> Tokenizer:
    """What `make` returns; raises CheckpointError, naming the file, whatever way it fails, and for
    ids that are too high."""
    with _usable(file):
        tokenizer = make()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= MAX_IDS:
        raise CheckpointError(
            f"{file}: a token has the id {highest}, allowed are 0 to {MAX_IDS - 1}"
        )
    return tokenizer


@contextlib.contextmanager
def _usable(file: str) -> Iterator[None]:
    """Raises CheckpointError, naming the file, for whatever the library raises."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # it raises bare Exception, and panics
        raise CheckpointError(f"{file}: not a usable tokenizer: {error!s:.200}") from error


def add_missing(tokenizer: Tokenizer, tokens: Tokens) -> None:
    """Add tokens that the tokenizer lacks or has with other flags, in transformers' order: ids
    follow from it."""
    present = tokenizer.get_added_tokens_decoder().values()
    alike = {repr(token) for token in present}
    missing: list[AddedToken] = [token for token in tokens.added if repr(token) not in alike]
    known = {token.content for token in (*present, *missing)}
    for token in (*tokens.named.values(), *tokens.extra):
        if text_of(token) not in known:
            known.add(text_of(token))
            missing.append(_with_special(token))
    names = {text_of(token) for token in tokens.named.values()}
    for token in missing:
        if token.content in names:
            token.special = True
    tokenizer.add_tokens(missing)


def _with_special(token: str | AddedToken) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else token
