"""The tokens that a model's files name beside tokenizer.json, read as AutoTokenizer reads them.

tokenizer_config.json says which tokens there are (`added_tokens_decoder`) and what some are for
(`bos_token`, `extra_special_tokens`, …). Files of older programs have special_tokens_map.json and
added_tokens.json for that; both count only where `added_tokens_decoder` is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken

from blockllm.errors import CheckpointError
from blockllm.zoo.text.files import (
    ADDED_TOKENS,
    SETTINGS,
    SPECIAL_TOKENS,
    TextFiles,
    read_object,
    without_nulls,
)

NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

AnyToken = str | AddedToken


class Tokens(NamedTuple):
    """`named` tokens by what they are for, further special ones, and tokens with all their flags
    in the order of their ids."""

    named: Mapping[str, AnyToken]
    extra: tuple[AnyToken, ...]
    added: tuple[AddedToken, ...]

    @property
    def texts(self) -> dict[str, str]:
        """The named tokens as chat templates know them."""
        return {name: text_of(token) for name, token in self.named.items()}


def read_tokens(files: TextFiles, assumed: Mapping[str, str]) -> Tokens:
    """The tokens of these files; `assumed` are named tokens that the settings need not name.

    Raises CheckpointError for a damaged file, or a token that is none.
    """
    document = read_object(files, SETTINGS)
    settings = without_nulls(document)
    assumed = {name: text for name, text in assumed.items() if name not in document}
    listed = settings.get("added_tokens_decoder")
    if listed is None:
        settings |= _read_older(files, settings)
    named, extra = _named({**assumed, **settings}), _extra(settings)
    if listed is not None:
        added = _read_listed(listed)
    else:
        added = _read_added(files, {text_of(token) for token in (*named.values(), *extra)})
    flagged = {token.content: token for token in added.values()}
    return Tokens(
        {name: flagged.get(text_of(token), token) for name, token in named.items()},
        extra,
        tuple(added[index] for index in sorted(added)),
    )


def text_of(token: AnyToken) -> str:
    """The text of a token."""
    return token if isinstance(token, str) else token.content


def _read_older(files: TextFiles, settings: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, whose objects are special tokens whatever they say."""
    found = {}
    for key, value in without_nulls(read_object(files, SPECIAL_TOKENS)).items():
        if key not in _EXTRA:
            found[key] = _special(value)
        elif isinstance(value, list):
            before = settings.get(key) or []
            more = [_special(token) for token in value]
            found[key] = [*before, *(token for token in more if token not in before)]
        else:
            found[key] = value
    return found


def _special(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return _make_token(value, SPECIAL_TOKENS, special=True)


def _named(settings: Mapping[str, Any]) -> dict[str, AnyToken]:
    """The usual named tokens first, then the model's own: with flags, as text, in an object."""
    own = {key: value for key, value in settings.items() if _names_token(key, value)}
    values = {key: settings[key] for key in NAMED if key in settings}
    values |= {key: value for key, value in own.items() if not isinstance(value, str)}
    values |= {key: value for key, value in own.items() if isinstance(value, str)}
    for key in _EXTRA:
        if isinstance(settings.get(key), dict):
            values |= without_nulls(settings[key])
    return {key: _any_token(value, key) for key, value in values.items()}


def _names_token(key: str, value: object) -> bool:
    if key in NAMED or not key.endswith("_token"):
        return False
    is_object = isinstance(value, dict) and value.get("__type") == "AddedToken"
    return is_object or isinstance(value, str | AddedToken)


def _extra(settings: Mapping[str, Any]) -> tuple[AnyToken, ...]:
    value: object = next((settings[key] for key in _EXTRA if settings.get(key)), [])
    if not isinstance(value, list | dict):
        raise CheckpointError(
            f"{SETTINGS}: {_EXTRA[0]}: expected a list or an object, got {value!r:.60}"
        )
    return tuple(_any_token(token, _EXTRA[0]) for token in value if isinstance(value, list))


def _read_listed(listed: object) -> dict[int, AddedToken]:
    where = f"{SETTINGS}: added_tokens_decoder"
    if not isinstance(listed, dict):
        raise CheckpointError(f"{where}: expected an object, got {listed!r:.60}")
    return {_index(key, where): _make_token(value, where) for key, value in listed.items()}


def _read_added(files: TextFiles, special: set[str]) -> dict[int, AddedToken]:
    found = {}
    for text, index in read_object(files, ADDED_TOKENS).items():
        is_special = text in special
        token = AddedToken(text, normalized=not is_special, special=is_special)
        found[_index(index, ADDED_TOKENS)] = token
    return found


def _any_token(value: object, key: str) -> AnyToken:
    if isinstance(value, str | AddedToken):
        return value
    return _make_token(value, f"{SETTINGS}: {key}")


def _make_token(value: object, where: str, **flags: bool) -> AddedToken:
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(content, str):
        raise CheckpointError(f"{where}: expected a token, got {value!r:.60}")
    given = {flag: value[flag] for flag in _FLAGS if isinstance(value.get(flag), bool)}
    return AddedToken(content, **{**given, **flags})


def _index(value: object, where: str) -> int:
    if isinstance(value, str | int) and str(value).isdecimal():
        return int(value)
    raise CheckpointError(f"{where}: expected a token's id, got {value!r:.60}")
