"""A model's folder, opened and checked as far as that needs no zoo: what can be stuck or refused
is so before anything waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from blockllm.errors import ZooError
from blockllm.zoo.adapters import AdapterKind, choose_kind
from blockllm.zoo.assets import copy_assets
from blockllm.zoo.checkpoint import WeightFiles, open_adapter
from blockllm.zoo.contents import look_at
from blockllm.zoo.model import Checkpoint, open_checkpoint
from blockllm.zoo.text.conversion import convert
from blockllm.zoo.text.facts import Probe, TextFacts, read_facts
from blockllm.zoo.text.files import TOKENIZER


class Wish(NamedTuple):
    """What to add: the name it gets, its folder, what the user called that, the base's name, the
    format of its linears ("int8"; None: as they are), the factor of an adapter's scale, and what
    tries its text files.
    """

    name: str
    folder: Path
    root: str
    base: str | None
    format: str | None
    scale: float | None
    probe: Probe | None = None


class OpenedModel(NamedTuple):
    """A full checkpoint: headers checked, text files copied and read."""

    wish: Wish
    own: dict[str, Path]
    checkpoint: Checkpoint
    facts: TextFacts
    notes: tuple[str, ...]


class OpenedAdapter(NamedTuple):
    """An adapter: headers checked, text files copied; a base says what the rest means."""

    wish: Wish
    own: dict[str, Path]
    kind: AdapterKind
    weights: WeightFiles
    notes: tuple[str, ...]


@contextmanager
def open_source(wish: Wish) -> Iterator[OpenedModel | OpenedAdapter]:
    """Open a folder; its files stay open until the end. Raises a ZooError or OSError."""
    contents = look_at(wish.folder)
    with TemporaryDirectory(prefix="blockllm-") as scratch:
        own = copy_assets(wish.folder, Path(scratch))
        if contents.is_adapter:
            with _open_adapter(wish, own, contents.notes) as adapter:
                yield adapter
        else:
            with _open_model(wish, own, Path(scratch), contents.notes) as model:
                yield model


@contextmanager
def _open_model(
    wish: Wish, own: dict[str, Path], scratch: Path, notes: tuple[str, ...]
) -> Iterator[OpenedModel]:
    if wish.base is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it takes no base")
    if wish.scale is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it has no scale")
    checkpoint = open_checkpoint(wish.folder, as_int8=wish.format == "int8")
    with checkpoint.files:
        converted = convert(wish.folder, own, checkpoint.family)
        if converted:
            notes += (converted.note,)
        if converted and converted.text is not None:
            own[TOKENIZER] = scratch / TOKENIZER
            own[TOKENIZER].write_text(converted.text, "utf-8")
        facts = read_facts(own, own, checkpoint.family, wish.probe)
        yield OpenedModel(wish, own, checkpoint, facts, notes + checkpoint.notes)


@contextmanager
def _open_adapter(
    wish: Wish, own: dict[str, Path], notes: tuple[str, ...]
) -> Iterator[OpenedAdapter]:
    if wish.format is not None:
        raise ZooError(f"{wish.root} is an adapter: it takes the format of its base")
    kind = choose_kind(wish.folder)
    with open_adapter(wish.folder, kind.files, kind.saving) as weights:
        yield OpenedAdapter(wish, own, kind, weights, notes)
