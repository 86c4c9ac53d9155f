"""Trained rows of the embedding or the head: PEFT's `trainable_token_indices` and TRAINABLE_TOKENS.

(module).token_adapter.trainable_tokens_delta    [tokens, hidden]    beside a low-rank adapter
(module).trainable_tokens_delta                  the same            alone
(module)….trainable_tokens_original              the base's rows: nothing is computed with them

They stand instead of the base's rows, in the order in which the configuration lists the tokens. A
head that shares its weight with the embedding gets the embedding's, unless it has a list of its
own or is replaced (`modules_to_save`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import (
    AdapterPlan,
    Addition,
    Layers,
    LinearPlace,
    check_shape,
    find_linear,
    is_tied,
    strip_prefix,
    with_shapes,
)
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_ROWS = re.compile(r"(.+?)(?:\.token_adapter)?\.trainable_tokens_(delta|original)(?:\.[^.]+)?")
_INDICES = "trainable_token_indices"
_OPTIONS = {"init_weights", "target_modules", "token_indices"}


class _Rows(NamedTuple):
    """Trained rows of a module, and of which tokens."""

    place: LinearPlace
    source: Source
    tokens: tuple[int, ...]


def read_tokens(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's TRAINABLE_TOKENS; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    rows, whole = split_rows(strip_prefix(tensors))
    additions, replaced = read_saved(reader, whole, layers)
    wished = dict.fromkeys(rows, reader.integers("token_indices"))
    additions += _add(reader, wished, rows, layers, with_shapes(layers, replaced))
    return AdapterPlan("tokens", additions, replaced)


def add_rows(
    reader: SettingsReader, rows: Mapping[str, Source], layers: Layers, shaped: Layers
) -> list[Addition]:
    """The rows of `trainable_token_indices` beside another kind. `shaped`: the base's layers, with
    the shapes that the adapter gives them. Raises a CheckpointError."""
    return _add(reader, _wished(reader, rows), rows, layers, shaped)


def split_rows(tensors: Mapping[str, Source]) -> tuple[dict[str, Source], dict[str, Source]]:
    """Trained rows by module, and all other tensors by name."""
    rows: dict[str, Source] = {}
    others: dict[str, Source] = {}
    for name, source in tensors.items():
        match = _ROWS.fullmatch(name)
        if match is None:
            others[name] = source
        elif match[2] == "delta" and match[1] in rows:
            raise AdapterMismatch(f"trained rows of {match[1][:200]!r} are there in two ways")
        elif match[2] == "delta":
            rows[match[1]] = source
    return rows, others


def _wished(reader: SettingsReader, rows: Mapping[str, Source]) -> dict[str, list[int]]:
    """The tokens by the name of a module; those that the file has rows of by its full name."""
    listed = {}
    if reader.is_section(_INDICES):
        section = reader.section(_INDICES)
        listed = {name: section.integers(name) for name in section.all_keys()}
    elif _INDICES in reader:
        listed = {"embed_tokens": reader.integers(_INDICES)}
    full = {m: next((n for n in listed if f".{m}".endswith(f".{n}")), None) for m in rows}
    named = {module: listed[name] for module, name in full.items() if name is not None}
    return {**named, **{n: tokens for n, tokens in listed.items() if n not in full.values()}}


def _add(
    reader: SettingsReader,
    wished: Mapping[str, list[int]],
    rows: Mapping[str, Source],
    layers: Layers,
    shaped: Layers,
) -> list[Addition]:
    follows = _follows(reader, layers)
    found = {}
    for module, source in rows.items():
        if module == "lm_head" and follows and module not in wished:
            continue  # the embedding's once more: peft saves them where the vocabulary was resized
        if module not in wished:
            raise AdapterMismatch(f"{reader.where}: no tokens are listed for {module[:200]!r}")
        own = _rows(reader, module, source, wished[module], shaped)
        if own.tokens:
            found[own.place.module] = own
    embed, head = found.get("embed"), found.get("head")
    listed = wished.get("lm_head")
    if embed and follows and (listed is None or tuple(listed) == embed.tokens):
        head = embed._replace(place=find_linear("lm_head", shaped))
    elif embed and not head and layers[-1].tensors["weight"].dtype == "I8":
        raise UnsupportedModel(
            "trained rows of the embedding on an int8 base: whether its head shares them is not "
            "known any more; add the adapter to the base as it was (without --format int8)"
        )
    missing = set(wished) - set(rows) - ({"lm_head"} if head else set())
    if any(wished[name] for name in missing):
        raise AdapterMismatch(f"trained rows of {min(missing)[:200]!r} are missing")
    return [
        Addition(p.position, p.module, "rows", {"rows": source}, {"tokens": tokens})
        for p, source, tokens in (each for each in (embed, head) if each)
    ]


def _follows(reader: SettingsReader, layers: Layers) -> bool:
    """Whether the head has the embedding's rows."""
    return is_tied(layers) and "lm_head" not in reader.texts("modules_to_save")


def _rows(
    reader: SettingsReader, module: str, source: Source, tokens: list[int], layers: Layers
) -> _Rows:
    place = find_linear(module, layers)
    if place.module not in ("embed", "head"):
        raise UnsupportedModel(
            f"{reader.where}: trained rows of {module[:200]!r} are not supported, only of "
            "embed_tokens and lm_head; merge the adapter and add the result as a model"
        )
    check_shape(f"{module}, trained rows", source, (len(tokens), place.columns))
    where = f"{reader.where}: tokens of {module[:200]}"
    if not all(0 <= token < place.rows for token in tokens):
        raise AdapterMismatch(f"{where} must lie in 0..{place.rows - 1}")
    if len(set(tokens)) < len(tokens):
        raise AdapterMismatch(f"{where}: one is listed twice, so that two rows stand for it")
    return _Rows(place, source, tuple(tokens))
