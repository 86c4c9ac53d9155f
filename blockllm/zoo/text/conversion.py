"""tokenizer.json made of the vocabulary files that older programs saved instead.

Only for the kinds of tokenizers that are built from a vocabulary alone (kinds.py), and then
as AutoTokenizer builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import BPE

from blockllm.errors import CheckpointError
from blockllm.zoo.foreign import is_there
from blockllm.zoo.settings_reader import SettingsReader, read_json
from blockllm.zoo.text import sentencepiece
from blockllm.zoo.text.files import (
    SETTINGS,
    TOKENIZER,
    TextFiles,
    read_bytes,
    read_object,
    without_nulls,
)
from blockllm.zoo.text.kinds import ASSUMED, LLAMA, QWEN2, read_kind, rebuild
from blockllm.zoo.text.loading import MAX_IDS, add_missing, open_tokenizer
from blockllm.zoo.text.tokens import Tokens, read_tokens

_MODEL = ("tokenizer.model",)
_PAIRS = ("vocab.json", "merges.txt")


class Conversion(NamedTuple):
    """tokenizer.json as text, if it could be made, and what to say of it."""

    text: str | None
    note: str


def convert(folder: Path, files: TextFiles, family: str) -> Conversion | None:
    """What becomes of a folder whose tokenizer has no tokenizer.json; None without such files.

    Raises CheckpointError, naming the file, when one is damaged.
    """
    found = [names for names in (_PAIRS, _MODEL) if all(is_there(folder / n) for n in names)]
    if TOKENIZER in files or not found:
        return None
    settings = without_nulls(read_object(files, SETTINGS))
    kind = read_kind(settings, family, is_byte_level=False)
    names = {QWEN2: _PAIRS, LLAMA: _MODEL}.get(kind.name)
    source = " and ".join(found[0])
    if names not in found:
        declared = settings.get("tokenizer_class", "none")
        return Conversion(
            None,
            f"{source}: not read for the tokenizer_class {declared!r} of a {family} model; "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes tokenizer.json",
        )
    tokens = read_tokens(files, ASSUMED[kind.name])
    if kind.name == LLAMA:
        tokenizer, extra = _from_pieces(folder / _MODEL[0])
        tokens = tokens._replace(extra=tokens.extra or extra)
    else:
        vocabulary, merges = _read_vocabulary(folder / _PAIRS[0]), _read_merges(folder / _PAIRS[1])
        tokenizer = open_tokenizer(lambda: Tokenizer(BPE(vocabulary, merges)), source)
    rebuild(tokenizer, kind)
    add_missing(tokenizer, tokens)
    _surround(tokenizer, tokens, settings)
    return Conversion(tokenizer.to_str(), f"{TOKENIZER} was made of {' and '.join(names)}")


def _from_pieces(path: Path) -> tuple[Tokenizer, tuple[AddedToken, ...]]:
    """The tokenizer of a SentencePiece model, and its pieces that are tokens of their own."""
    model = sentencepiece.read_model(path)
    if model.kind != sentencepiece.BPE:
        raise CheckpointError(f"{path.name}: expected a BPE model, got one of kind {model.kind}")
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    merges = [
        (text[:at], text[at:])
        for text in vocabulary
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    tokens = tuple(
        AddedToken(piece.text, normalized=False, special=piece.kind == sentencepiece.CONTROL)
        for piece in model.pieces
        if piece.kind in (sentencepiece.CONTROL, sentencepiece.USER_DEFINED)
    )
    return open_tokenizer(lambda: Tokenizer(BPE(vocabulary, merges)), path.name), tokens


def _read_vocabulary(path: Path) -> dict[str, int]:
    reader = SettingsReader(read_json(path), path.name)
    return {text: reader.integer(text, low=0, high=MAX_IDS - 1) for text in reader.all_keys()}


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """One pair of pieces a line, which a space parts."""
    merges = []
    try:
        lines = read_bytes(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name}: not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        first, _, second = line.removesuffix("\r").partition(" ")
        if not line or line.startswith("#version"):
            continue
        if not (first and second) or " " in second:
            where = f"{path.name}: line {number}"
            raise CheckpointError(f"{where}: expected two pieces, got {line!r:.60}")
        merges.append((first, second))
    return merges


def _surround(tokenizer: Tokenizer, tokens: Tokens, settings: Mapping[str, Any]) -> None:
    """Put around texts what the settings say; with a tokenizer.json they would not count."""
    around = {}
    for name in ("bos_token", "eos_token"):
        if settings.get(f"add_{name}") is True and name in tokens.named:
            token = tokens.texts[name]
            around[name] = token, tokenizer.token_to_id(token)
    if around:
        before, behind = (around.get(name, ("",))[0] for name in ("bos_token", "eos_token"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {behind}".split(), special_tokens=[*around.values()]
        )
