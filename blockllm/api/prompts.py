"""From a conversation to token ids: only the template writes control tokens, not the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from blockllm.api.limits import check_prompt
from blockllm.api.marks import ControlTokens, Messages, Variables
from blockllm.api.template import ChatTemplate
from blockllm.api.tokenizer import TextTokenizer

TEMPLATE, TOKENIZER = "chat template", "tokenizer"  # the parts of a model that make a prompt

At = Callable[[str, bool], None]


def _untold(part: str, loads: bool) -> None:
    """The caller does not ask which part works."""


class ChatPrompts:
    """One model's template and tokenizer. Safe to use from any thread."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer

    @cached_property
    def controls(self) -> ControlTokens:
        """The special tokens, and other added tokens that the template writes or looks for."""
        tokens = self._tokenizer.added_tokens()
        written = self._template.literals
        own = [
            token.content
            for token in tokens
            if not token.special and token.content in written and _is_marked(token.content)
        ]
        return ControlTokens([*(t.content for t in tokens if t.special), *own], own)

    def is_ordinary(self, messages: Messages, variables: Variables) -> bool:
        """Whether no text of the conversation spells a control token."""
        return not self.controls.occur_in([messages, variables])

    def ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Variables | None = None,
        add_special: bool = False,
        as_tokens: bool = False,
        max_context: int | None = None,
        has_to_fit: bool = False,
        at: At = _untold,
    ) -> list[int]:
        """The prompt's ids. What messages and variables spell stays text, unless `as_tokens`.

        `add_special` adds what the tokenizer puts around other texts; templates write their own.
        Raises BadRequest when the template refuses, ContextTooLong when messages that spell control
        tokens do not fit into `max_context` tokens: telling these from text takes long. With
        `has_to_fit` also for other messages that are much longer, before all is encoded.
        `at` is told which part of the model works next, and whether it is only made ready.
        """
        variables = variables or {}
        at(TEMPLATE, False)
        text = self._template.render(messages, add_generation_prompt, variables)
        at(TOKENIZER, False)
        if has_to_fit and max_context is not None:
            self._tokenizer.check_length(text, max_context, "messages")
        ids = self._tokenizer.encode(text, add_special, "messages")
        if as_tokens or self.is_ordinary(messages, variables):
            return ids
        if max_context is not None:
            check_prompt(ids, max_context, "messages")

        def render(messages: Messages, variables: Variables) -> str:
            at(TEMPLATE, False)
            return self._template.render(messages, add_generation_prompt, variables)

        located = self.controls.locate(text, messages, variables, render)
        at(TOKENIZER, True)
        self._tokenizer.literal_encoder(self.controls.texts)
        at(TOKENIZER, False)
        return self._tokenizer.encode_literal(*located, self.controls.texts, add_special)


def _is_marked(token: str) -> bool:
    """Whether the token looks like a sign for the model, as <think> does: words, spaces and code
    fences that a tokenizer keeps whole are ordinary text."""
    is_framed = not (token[:1].isalnum() or token[-1:].isalnum())
    return is_framed and any(character.isalpha() for character in token)
