"""What the front end knows of each served model: card, token table, text files, fingerprint."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.models import BPE

from blockllm.api.errors import without_paths
from blockllm.api.text import Caller, ModelText, TextReader
from blockllm.api.text_calls import TASKS, TextContent
from blockllm.api.tokenizer import TokenTable
from blockllm.chain import fingerprint
from blockllm.core import Chain, EmbedFunction, ModelCard
from blockllm.errors import (
    BadRequest,
    BlockllmError,
    CheckpointError,
    CorruptStore,
    ModelNotFound,
    UnknownModel,
)
from blockllm.workers.inline import InProcess

MAX_SHOWN = 8  # names of models in an error

logger = logging.getLogger(__name__)


class ZooReader(Protocol):
    """What is read of the zoo; what blockllm.zoo.Zoo.moment returns is one."""

    def cards(self) -> list[ModelCard]: ...
    def chains(self, names: Sequence[str]) -> dict[str, Chain]: ...
    def asset(self, name: str, file: str) -> Path | None: ...


class ServedModel:
    """One model as clients see it. Does not change while it is served."""

    def __init__(
        self,
        card: ModelCard,
        max_context: int,
        fingerprint: str,
        text: ModelText,
        num_tokens: int,
    ) -> None:
        self.card = card
        self.max_context = max_context
        self.fingerprint = fingerprint
        self.defaults = text.defaults
        self.content = text.content
        self._tokens = text.tokens
        self._num_tokens = num_tokens

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def has_template(self) -> bool:
        return bool(self.content.template)

    @property
    def decoder(self) -> TokenTable:
        """What makes text of ids; for a model without a tokenizer every answer is empty text."""
        return _silent() if self._tokens is None else self._tokens

    def require_tokenizer(self) -> TextContent:
        """The files by which text becomes ids. Raises BadRequest when the model came without."""
        if self._tokens is None:
            raise BadRequest(
                f"model {self.name!r} has no tokenizer.json: give token ids as `prompt` of "
                "/v1/completions",
                "model",
            )
        return self.content

    def require_template(self) -> TextContent:
        """The files by which conversations become ids. Raises BadRequest when the model came
        without a tokenizer or a template."""
        if not self.has_template:
            raise BadRequest(
                f"model {self.name!r} has no chat template: use /v1/completions", "model"
            )
        return self.require_tokenizer()

    def check_tokens(self, ids: list[int], param: str) -> list[int]:
        """The ids that the tokenizer made of a field. Raises BadRequest, naming the field, when the
        model has no weights for one of them."""
        stranger = max(ids, default=0)
        if self._num_tokens and stranger >= self._num_tokens:
            token = self.decoder.token(stranger)
            raise BadRequest(
                f"{param}: the text has the token {token!r} (id {stranger}), which the model's "
                f"tokenizer knows and its weights do not: they have {self._num_tokens} tokens",
                param,
            )
        return ids


@functools.cache
def _silent() -> TokenTable:
    return TokenTable(Tokenizer(BPE()))


class Models:
    """The served models by name, and why others of the zoo are not served.

    `chains` is what each model was resolved to when it was read; it is never resolved again.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        chains: Mapping[str, Chain] | None = None,
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self.chains = dict(chains or {})
        self._all = {model.name: model for model in models}
        self._unreadable = dict(unreadable or {})
        self.leave_out({})

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """From now on serve all that were read but these, and say why when one is asked for."""
        self._reasons = {**self._unreadable, **reasons}
        self._models = {n: model for n, model in self._all.items() if n not in reasons}

    def require(self, names: Iterable[str]) -> None:
        """Raise CheckpointError for the first of these models that is left out."""
        for name in names:
            if name in self._reasons:
                raise CheckpointError(f"model {name!r} cannot be served: {self._reasons[name]}")

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why a model is not served, by name."""
        return self._reasons

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def _some(self) -> str:
        """The first names and how many there are, for errors."""
        shown = ", ".join(self.names[:MAX_SHOWN])
        more = len(self.names) - MAX_SHOWN
        return f"this server has {shown}" + (f" and {more} more" if more > 0 else "")

    def limit(self, max_context: Mapping[str, int]) -> None:
        """Lower the models' contexts to what the engine can hold; before serving starts."""
        for name, tokens in max_context.items():
            if name in self._models:
                model = self._models[name]
                model.max_context = min(model.max_context, tokens)

    def find(self, name: str | None) -> ServedModel:
        """The model of this name; without one the only model. Raises ModelNotFound."""
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        if not name:
            raise BadRequest("model: required, because several models are served", "model")
        found = self._models.get(name)
        if found is None:
            if name in self._reasons:
                why = without_paths(self._reasons[name])
                reason = f"{why}; add it again and restart the server"
                raise ModelNotFound(f"model {name!r} is not served: {reason}", "model")
            raise ModelNotFound(f"no model {name[:256]!r} is served; {self._some()}", "model")
        return found


def load_models(
    zoo: ZooReader,
    names: Sequence[str] | None,
    max_context: int = 0,
    caller: Caller | None = None,
) -> Models:
    """Read what the front end needs of these models (all, if None); equal tokenizers are shared.
    `caller` opens tokenizers and templates; without one they are opened in this process.

    A model that was asked for by name has to be readable; of all models, unreadable ones are left
    out and named in the log.
    Raises UnknownModel for a name the zoo does not have, CheckpointError for damaged files.
    """
    cards = {card.name: card for card in zoo.cards()}
    unknown = sorted(set(names or ()) - set(cards))
    if unknown:
        raise UnknownModel(f"the zoo has no model {unknown[0]!r}; it has {', '.join(cards)}")
    if not cards:
        raise UnknownModel("the zoo holds no model: add one with `blockllm zoo add`")
    wanted = list(dict.fromkeys(names)) if names else list(cards)
    chains: dict[str, Chain] = {}
    reader = TextReader(zoo, caller or InProcess(TASKS))
    models, unreadable = [], {}
    for name in wanted:
        try:
            if cards[name].damaged:
                raise CorruptStore(cards[name].damaged)
            chains |= zoo.chains([name])
            models.append(_read_model(reader, cards[name], chains[name], max_context))
        except (BlockllmError, OSError, ValueError) as error:
            unreadable[name] = str(error)
    served = {model.name: chains[model.name] for model in models}
    found = Models(models, served, unreadable)
    found.require(wanted if names or not models else ())
    for name, reason in unreadable.items():
        logger.error("model %r is left out: %s", name, reason)
    return found


def _read_model(reader: TextReader, card: ModelCard, chain: Chain, max_context: int) -> ServedModel:
    context = min(card.max_context, max_context) if max_context else card.max_context
    computed_by = f"{fingerprint(chain)}-{card.format}"
    text = reader.read(card.name, card.family)
    return ServedModel(card, context, computed_by, text, _num_tokens(chain))


def _num_tokens(chain: Chain) -> int:
    """How many tokens the model has; 0 when the chain does not say."""
    layers = chain.entries[0].block.layers if chain.entries else ()
    function = layers[0].function if layers else None
    return function.vocab_size if isinstance(function, EmbedFunction) else 0
