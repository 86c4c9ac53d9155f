"""Encoding a prompt of which some spans are text, whatever tokens they spell.

The ordinary tokenizer cuts the text at added tokens and encodes what lies between, piece by piece.
So the prompt is encoded with the spans blotted out, and pieces that contain one are encoded again
by a tokenizer that has the control tokens under names that no text can spell.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from blockllm.api.marks import Span

_FIRST_PRIVATE = 0xF0000


class _Piece(NamedTuple):
    """Tokens between two control tokens, and the characters that they stand for."""

    tokens: slice
    start: int
    end: int


class LiteralEncoder:
    """One tokenizer and the control tokens that spans of its texts must not become."""

    def __init__(self, tokenizer: Tokenizer, controls: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = {tokenizer.token_to_id(token): token for token in controls}
        # no text can spell what it cannot know
        self._secret = f"\U0010fffd{secrets.token_hex(16)}"
        self._plain = Tokenizer.from_str(_renamed(tokenizer, set(self._ids.values()), self._secret))

    def encode(self, text: str, spans: Sequence[Span], add_special: bool) -> list[int]:
        """Ids of the text; raises TypeError for what is not Unicode."""
        blotted = _blot(text, spans)
        (encoding,) = self._tokenizer.encode_batch([blotted], add_special_tokens=add_special)
        ends = [end for _, end in spans]
        ids: list[int] = []
        for piece in self._pieces(encoding, blotted):
            at = bisect_right(ends, piece.start)  # the first span that ends in it or behind it
            if at < len(spans) and spans[at][0] < piece.end:
                ids += self._encode_piece(text[piece.start : piece.end], piece.start == 0)
            else:
                ids += encoding.ids[piece.tokens]
            ids += encoding.ids[piece.tokens.stop : piece.tokens.stop + 1]
        return ids

    def _encode_piece(self, text: str, is_first: bool) -> list[int]:
        # some tokenizers treat the beginning of a text differently from what follows a token
        before = "" if is_first else self._secret
        ids: list[int] = self._plain.encode(before + text, add_special_tokens=False).ids
        return ids if is_first else ids[1:]

    def _pieces(self, encoding: Any, text: str) -> list[_Piece]:
        """What lies before, between and behind control tokens, even where that is nothing. Each
        ends with the control token behind it, or with one that no text stands for."""
        pieces = []
        first, start = 0, 0
        ids, masks = encoding.ids, encoding.special_tokens_mask
        last = max((i for i, mask in enumerate(masks) if not mask), default=-1)
        offsets = encoding.offsets
        for index in [i for i, token in enumerate(ids) if masks[i] or token in self._ids]:
            begin, end = offsets[index]
            if masks[index]:  # put around the text
                begin, end = (len(text), len(text)) if index > last else (0, 0)
            elif self._ids[ids[index]].strip() != text[begin:end].strip():
                continue  # such as the id of what the tokenizer does not know
            pieces.append(_Piece(slice(first, index), start, begin))
            first, start = index + 1, end
        return [*pieces, _Piece(slice(first, len(ids)), start, len(text))]


def _blot(text: str, spans: Sequence[Span]) -> str:
    used = set(text)
    code = _FIRST_PRIVATE
    while chr(code) in used:
        code += 1
    characters = list(text)
    for start, end in spans:
        # no space at the ends, which tokens beside it may take; many short words in all
        characters[start:end] = chr(code) + " " * (end - start - 2) + chr(code) * (end > start + 1)
    return "".join(characters)


def _renamed(tokenizer: Tokenizer, controls: set[str], secret: str) -> str:
    """The tokenizer as JSON, its control tokens under other names with the same ids; the secret
    itself becomes a token, too."""
    document = json.loads(tokenizer.to_str())
    added, model = document["added_tokens"], document["model"]
    names = {token: f"{secret}-{tokenizer.token_to_id(token)}" for token in controls}
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": 0, "content": secret, "special": True, **flags})
    model["vocab"] = _rename_vocabulary(model["vocab"], names)
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, controls)]
    document["post_processor"] = None
    return json.dumps(document)


def _rename_vocabulary(vocabulary: Any, names: dict[str, str]) -> Any:
    if isinstance(vocabulary, dict):
        return {names.get(token, token): index for token, index in vocabulary.items()}
    return [[names.get(token, token), score] for token, score in vocabulary]


def _makes(merge: str | Sequence[str], controls: set[str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left + right in controls or left in controls or right in controls
