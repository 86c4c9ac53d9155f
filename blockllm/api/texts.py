"""Texts of requests ↔ ids, by the workers that run the models' tokenizers and templates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from blockllm.api import text_calls, wire
from blockllm.api.conversation import variables_of
from blockllm.api.models import ServedModel
from blockllm.errors import BadRequest, ContentFault
from blockllm.workers.call import Call, R, Runner
from blockllm.workers.inline import InProcess
from blockllm.workers.ledger import Ledger


@contextlib.contextmanager
def naming(model: str, field: str | None) -> Iterator[None]:
    """Turns a fault of a model's content into the BadRequest that names model and content."""
    try:
        yield
    except ContentFault as fault:
        part = fault.part or "text files"
        raise BadRequest(f"the {part} of model {model!r} {fault}", field) from fault


class Texts:
    """What the routes ask for, each for a tenant. Each method raises BadRequest for a fault of the
    model's content."""

    def __init__(
        self,
        runner: Runner | None = None,
        ledger: Ledger | None = None,
        booked: Callable[..., None] | None = None,
    ) -> None:
        """Without a `runner` everything happens in this process, for tests. `booked` is told the
        model and the content of each fault."""
        self._runner = runner or InProcess(text_calls.TASKS)
        self._ledger = ledger or Ledger()
        self._booked = booked

    async def encode(
        self,
        tenant: str,
        model: ServedModel,
        text: str,
        add_special: bool,
        field: str,
        has_to_fit: bool,
    ) -> list[int]:
        """Ids of the text of a field, each a token of the model. With `has_to_fit` raises
        ContextTooLong early, but not for every text that is too long."""
        content, most = model.require_tokenizer(), model.max_context if has_to_fit else None
        call = text_calls.encode_call(content, text, add_special, field, most)
        return model.check_tokens(await self._run(tenant, model, call), field)

    async def chat(
        self,
        tenant: str,
        model: ServedModel,
        messages: Sequence[wire.Message],
        fields: wire.TemplateFields,
        add_special: bool,
        as_tokens: bool,
        has_to_fit: bool,
    ) -> list[int]:
        """Ids of a conversation, each a token of the model. Raises ContextTooLong, too."""
        call = text_calls.chat_call(
            model.require_template(),
            messages,
            variables_of(fields),
            fields.add_generation_prompt,
            add_special,
            as_tokens,
            model.max_context,
            has_to_fit,
        )
        return model.check_tokens(await self._run(tenant, model, call), "messages")

    async def decode(self, tenant: str, model: ServedModel, ids: list[int]) -> str:
        """Text of the ids, control tokens too."""
        content = model.require_tokenizer()
        return await self._run(tenant, model, text_calls.decode_call(content, ids))

    def off(self, model: ServedModel) -> list[str]:
        """The parts of a model that are switched off for their faults."""
        return self._ledger.off(model.content.parts)

    async def _run(self, tenant: str, model: ServedModel, call: Call[R]) -> R:
        with naming(model.name, call.field):
            try:
                return await self._runner.run(replace(call, tenant=tenant))
            except ContentFault as fault:
                if self._booked is not None and fault.kind not in ("failed", "off"):
                    self._booked(model.name, fault.part)
                raise
