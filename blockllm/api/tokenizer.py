"""Text ↔ ids: a thin face of the `tokenizers` library, with the exact bytes of every token."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer

from blockllm.api.limits import prompt_too_long
from blockllm.api.literal import LiteralEncoder
from blockllm.api.marks import Span
from blockllm.errors import BadRequest


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


ALPHABET = _byte_level_alphabet()
SLICE = 1 << 16  # characters
MOST_CHARACTERS = 8  # that a token of a long text has, on average: shorter texts are just encoded
_BYTE = re.compile(r"<0x[0-9a-fA-F]{2}>")  # a token that stands for one


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Raises BadRequest, naming the field, for a text that the tokenizer does not take."""
    try:
        yield
    except TypeError as error:  # the library's word for it
        raise BadRequest(f"{field}: a lone surrogate is not Unicode", field) from error
    except Exception as error:  # it raises no other kind, for a character without a token too
        text = f"{field}: the model's tokenizer cannot encode the text: {error!s:.200}"
        raise BadRequest(text, field) from error


class TokenTable:
    """What every id stands for: what is needed to make text of ids. Safe to use from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.to_str())["decoder"] or {}
        self.is_byte_level = decoder.get("type") == "ByteLevel"
        self.special_ids = frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.token_bytes = functools.cache(self._token_bytes)
        self.token_text = functools.cache(self._token_text)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Text of the ids; ids without a token are skipped. Raises BadRequest for a decoder that
        fails."""
        try:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # the library's own, which is no Exception
                raise
            reason = f"the model's tokenizer cannot make text of tokens: {error!s:.200}"
            raise BadRequest(reason, "model") from error
        return text

    def token(self, index: int) -> str | None:
        """The token as its vocabulary writes it."""
        token: str | None = self._tokenizer.id_to_token(index)
        return token

    def _token_text(self, index: int) -> str | None:
        """The text of a token that is whole characters; None for one that is not."""
        try:
            return self.token_bytes(index).decode()
        except UnicodeDecodeError:
            return None

    def _token_bytes(self, index: int) -> bytes:
        """The bytes one token stands for; b"" when there is no such token."""
        token = self.token(index)
        if token is None:
            return b""
        if self.is_byte_level:
            try:
                return bytes([ALPHABET[character] for character in token])
            except KeyError:  # an added token with characters outside the alphabet
                return token.encode()
        if _BYTE.fullmatch(token):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()


class TextTokenizer(TokenTable):
    """One whole tokenizer, shared by every model that has the same file."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._literal: dict[frozenset[str], LiteralEncoder] = {}
        self._lock = threading.Lock()

    def encode(self, text: str, add_special: bool, field: str = "prompt") -> list[int]:
        """Ids of the text; `add_special` adds what the post-processor adds, such as BOS. Raises
        BadRequest, naming the field that the text is from, for what is not Unicode."""
        with _named(field):
            # unlike `encode`, this lets other threads run meanwhile
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        return ids

    def check_length(self, text: str, max_context: int, field: str) -> None:
        """Raise ContextTooLong, naming the field, for a text that is surely too long for a prompt:
        before all of it is encoded."""
        if len(text) <= max(SLICE, MOST_CHARACTERS * max_context):
            return
        count = 0
        for start in range(0, len(text), SLICE):
            count += len(self.encode(text[start : start + SLICE], False, field))
            if count > 2 * max_context:  # twice: a cut makes a few tokens more
                got = f"{len(text)} characters, whose beginning has {count} tokens already"
                raise prompt_too_long(got, max_context, field)

    def encode_literal(
        self, text: str, spans: Sequence[Span], controls: frozenset[str], add_special: bool
    ) -> list[int]:
        """Ids of the prompt of messages; its spans are no control tokens, whatever they spell."""
        encoder = self.literal_encoder(controls)
        with _named("messages"):
            return encoder.encode(text, spans, add_special)

    def literal_encoder(self, controls: frozenset[str]) -> LiteralEncoder:
        """Made for a tokenizer and a template when first needed, which takes as long as reading
        the tokenizer."""
        with self._lock:
            if controls not in self._literal:
                self._literal[controls] = LiteralEncoder(self._tokenizer, controls)
            return self._literal[controls]

    def added_tokens(self) -> list[AddedToken]:
        """The tokens that are matched in text before anything else; without the special ones when
        the tokenizer takes these for text."""
        added: list[AddedToken] = list(self._tokenizer.get_added_tokens_decoder().values())
        splits = self._tokenizer.encode_special_tokens
        return [token for token in added if not (token.special and splits)]
