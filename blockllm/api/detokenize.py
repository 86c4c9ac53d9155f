"""Ids → text, one token at a time: what is appended never changes what was emitted.

Time per token does not grow with the length of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from blockllm.api.tokenizer import TokenTable

PROMPT_TAIL = 5  # tokens of context, enough to settle leading spaces
MAX_WINDOW = 32  # tokens
MAX_HELD = 8  # tokens; a character has at most four bytes, so more is not a character


class Detokenizer(Protocol):
    """Holds back bytes that may become a character with the next token."""

    def feed(self, token: int) -> str:
        """Text that has become certain with this token."""

    def flush(self) -> str:
        """Text of what was held back; nothing more will come."""


def make_detokenizer(
    tokenizer: TokenTable, prompt: Sequence[int], skip_special: bool
) -> Detokenizer:
    """The exact one for byte-level tokenizers, a window over decoded text for all others."""
    if tokenizer.is_byte_level:
        return ByteDetokenizer(tokenizer, skip_special)
    return WindowDetokenizer(tokenizer, prompt, skip_special)


class ByteDetokenizer:
    """Concatenated text equals decoding all ids at once."""

    def __init__(self, tokenizer: TokenTable, skip_special: bool) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._token_text = tokenizer.token_text
        self._is_inside = False  # of a character
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        if token in self._skipped:
            return ""
        if not self._is_inside:  # nearly always, and then a token is its text
            text = self._token_text(token)
            if text is not None:
                return text
        text = self._decoder.decode(self._token_bytes(token))
        self._is_inside = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For decoders that look at neighbours (SentencePiece spaces, byte fallback).

        … settled │ window: context · new │      text(context · new) minus text(context)

    Equals decoding all ids at once wherever these are valid text; runs of bytes that are no
    characters may show another number of replacement signs.
    """

    def __init__(self, tokenizer: TokenTable, prompt: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window = list(prompt[-PROMPT_TAIL:])
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)

    def feed(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_context
        if text.endswith("\ufffd") and num_held < MAX_HELD:
            return ""
        return self._settle(text)

    def flush(self) -> str:
        return self._settle(self._decode(self._window))

    def _settle(self, text: str) -> str:
        new = text[len(self._context_text) :]
        # tokens without text stay a while: a context without text settles no leading space
        if new or len(self._window) > MAX_WINDOW:
            self._window = self._window[self._num_context :]
            self._num_context = len(self._window)
            self._context_text = self._decode(self._window)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special)
