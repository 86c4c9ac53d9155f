"""Templates and tokenizers that take time or memory without end, each in its smallest form."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from tests.api.family import byte_level_tokenizer

TEMPLATES = {
    "no end": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(40) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(40) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "lists by +": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "percent": "{{ '%4000000000d' % 1 }}",
    "format": "{{ '{:>4000000000}'.format('a') }}",
    "format filter": "{{ '%4000000000d' | format(1) }}",
    "center": "{{ 'a' | center(4000000000) }}",
    "ljust": "{{ 'a'.ljust(4000000000) }}",
    "zfill": "{{ '1'.zfill(4000000000) }}",
    "indent": "{{ 'a\nb' | indent(4000000000) }}",
    "tojson": "{{ [1, 2] | tojson(indent=4000000000) }}",
    "join": "{{ range(99999) | join('a' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'a' * 100000) }}",
    "batch": "{{ [1] | batch(4000000000, 'a') | list }}",
    "slice": "{{ [1] | slice(4000000000, 'a') | list }}",
    "sum": "{{ ([['a'] * 99999] * 99999) | sum(start=[]) | length }}",
    "lipsum": "{{ lipsum(n=99999, min=99999, max=100000) }}",
    "power": "{{ (7 ** 99999) ** 99 }}",
    "expandtabs": "{{ '\t\t'.expandtabs(2000000000) }}",
    "encode": "{{ 'a' | wordwrap(1, wrapstring='a' * 8000000) ~ ('a ' * 99999) | wordwrap(1, true, "
    "'b' * 999999) }}",
}


def _replaces(document: dict[str, Any]) -> None:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    document["normalizer"] = {"type": "Sequence", "normalizers": [one] * 6}


def _split(document: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated"}
    levels = [{**split, "invert": False}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": levels}


def _charsmap(document: dict[str, Any]) -> None:
    garbage = base64.b64encode(b"\x08\0\0\0" + b"\xff" * 60).decode()
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": garbage}


def _post_processor(document: dict[str, Any]) -> None:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    document["post_processor"]["single"] = [begin] * 200_000


def _decoder(document: dict[str, Any]) -> None:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    document["decoder"] = {"type": "Sequence", "decoders": [one] * 6}


def _regex_decoder(document: dict[str, Any]) -> None:
    pattern = {"Regex": "(a|a|aa)+$"}
    document["decoder"] = {"type": "Replace", "pattern": pattern, "content": "b"}


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "six replacements": _replaces,
    "a regular expression that backtracks": _split,
    "a broken charsmap": _charsmap,
    "a long beginning": _post_processor,
    "a decoder that grows": _decoder,
    "a decoder by regular expression": _regex_decoder,
}


def hostile_tokenizer(kind: str) -> str:
    """tokenizer.json of this kind."""
    document = json.loads(byte_level_tokenizer().to_str())
    TOKENIZERS[kind](document)
    return json.dumps(document)
