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


class AddOptions(NamedTuple):
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

    options: AddOptions
    own: dict[str, Path]
    checkpoint: Checkpoint
    facts: TextFacts
    notes: tuple[str, ...]


class OpenedAdapter(NamedTuple):
    """An adapter: headers checked, text files copied; a base says what the rest means."""

    options: AddOptions
    own: dict[str, Path]
    kind: AdapterKind
    weights: WeightFiles
    notes: tuple[str, ...]


@contextmanager
def open_source(options: AddOptions) -> Iterator[OpenedModel | OpenedAdapter]:
    """Open a folder; its files stay open until the end. Raises a ZooError or OSError."""
    contents = look_at(options.folder)
    with TemporaryDirectory(prefix="blockllm-") as scratch:
        own = copy_assets(options.folder, Path(scratch))
        if contents.is_adapter:
            with _open_adapter(options, own, contents.notes) as adapter:
                yield adapter
        else:
            with _open_model(options, own, Path(scratch), contents.notes) as model:
                yield model


@contextmanager
def _open_model(
    options: AddOptions, own: dict[str, Path], scratch: Path, notes: tuple[str, ...]
) -> Iterator[OpenedModel]:
    if options.base is not None:
        raise ZooError(f"{options.root} is a full checkpoint, not an adapter: it takes no base")
    if options.scale is not None:
        raise ZooError(f"{options.root} is a full checkpoint, not an adapter: it has no scale")
    checkpoint = open_checkpoint(options.folder, as_int8=options.format == "int8")
    with checkpoint.files:
        converted = convert(options.folder, own, checkpoint.family)
        if converted:
            notes += (converted.note,)
        if converted and converted.text is not None:
            own[TOKENIZER] = scratch / TOKENIZER
            own[TOKENIZER].write_text(converted.text, "utf-8")
        facts = read_facts(own, own, checkpoint.family, options.probe)
        yield OpenedModel(options, own, checkpoint, facts, notes + checkpoint.notes)


@contextmanager
def _open_adapter(
    options: AddOptions, own: dict[str, Path], notes: tuple[str, ...]
) -> Iterator[OpenedAdapter]:
    if options.format is not None:
        raise ZooError(f"{options.root} is an adapter: it takes the format of its base")
    kind = choose_kind(options.folder)
    with open_adapter(options.folder, kind.files, kind.saving) as weights:
        yield OpenedAdapter(options, own, kind, weights, notes)
