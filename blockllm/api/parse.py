"""From the bytes of a body to a struct, field by field, as clients mean them.

A null is a field that is not given; a number such as 16.0 is an integer where one is expected; a
field that is not supported is refused by name. Not one decoder for the whole body: the names of
fields that no struct has would be lost.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from blockllm.api.fields import REFUSED, Refused
from blockllm.errors import BadRequest

T = TypeVar("T", bound=msgspec.Struct)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_REREAD = 64 * 1024  # bytes of a field that is read again for its numbers, which is slow
NULL = msgspec.Raw(b"null")
# clients that cut a text by UTF-16 units leave one of a pair
_HALF_CHARACTER = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_names = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(body: bytes, kind: type[T]) -> T:
    """Decode one request body. Raises BadRequest naming the field and what was expected."""
    try:
        return _parse(body.removeprefix(BYTE_ORDER_MARK), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        half = _HALF_CHARACTER.search(body)
        cause = f"{half[0].decode()} is half a character, cut apart" if half else error
        raise BadRequest(f"the body is not valid JSON: {cause}") from error


def _parse(body: bytes, kind: type[T]) -> T:
    given = _split(body)
    fields = _fields_of(kind)
    values = {}
    for name, raw in given.items():
        if raw == NULL:
            continue
        decoder = fields.decoders.get(name)
        if decoder is not None:
            values[name] = _decode(name, raw, decoder, fields.types[name])
        elif name in REFUSED:
            _check_neutral(name, given)
    for name in fields.required:
        if name not in values:
            raise BadRequest(f"{name}: required, but missing or null", name)
    return kind(**values)


def _split(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields, not decoded yet."""
    try:
        return _names.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body: {error}") from error


class _Fields(NamedTuple):
    """What is known of one kind of body."""

    decoders: dict[str, msgspec.json.Decoder[Any]]
    types: dict[str, Any]
    required: list[str]


@functools.cache
def _fields_of(kind: type) -> _Fields:
    fields = msgspec.structs.fields(kind)
    return _Fields(
        {field.name: msgspec.json.Decoder(field.type) for field in fields},
        {field.name: field.type for field in fields},
        [field.name for field in fields if field.required],
    )


def _decode(name: str, raw: msgspec.Raw, decoder: msgspec.json.Decoder[Any], kind: Any) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        if len(memoryview(raw)) <= MAX_REREAD:
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(_whole_numbers.decode(raw), kind)
        message, _, place = str(error).partition(" - at ")
        param = name + place.rpartition("`$")[2].rstrip("`")
        missing = message.partition("missing required field `")[2].rstrip("`")
        param = ".".join(filter(None, (param, missing))).removesuffix("[...]")
        raise BadRequest(f"{param}: {message}", param) from error


def _as_whole(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number


_whole_numbers: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=_as_whole)


def _check_neutral(name: str, given: Mapping[str, msgspec.Raw]) -> None:
    """Raises BadRequest when an unsupported field asks for something."""
    rule = REFUSED[name]
    if rule.unless is not None:
        other, off = rule.unless
        if other in given and msgspec.json.decode(given[other]) == off:
            return
    try:
        value = msgspec.json.decode(given[name])
    except msgspec.ValidationError as error:  # a number that none here can hold
        raise BadRequest(f"{name}: {error}", name) from error
    check_refused(name, value, rule)


def check_refused(param: str, value: object, rule: Refused) -> None:
    """Raises BadRequest naming `param` unless the value says nothing."""
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if part is not None}
    if value is None or value in rule.neutral:
        return
    allowed = " or ".join(["leave it out", *(f"send {_shown(part)}" for part in rule.neutral)])
    instead = f"; {rule.instead}" if rule.instead else ""
    raise BadRequest(f"{param}: not supported by this server: {allowed}{instead}", param)


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
