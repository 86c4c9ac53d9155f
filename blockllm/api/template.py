"""Chat templates: Jinja as transformers configures it, sandboxed.

Templates come from the model's own files, never from a request. They are rendered in a worker,
which bounds their time and memory; what is refused here are the products and texts that are plainly
too large, with a better error.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.nodes import Const, TemplateData

from blockllm.api.reading import ReadingRules, as_read, find_reading_rules
from blockllm.errors import BadRequest, CheckpointError
from blockllm.zoo.text.dialect import Dialect

MAX_CHARACTERS = 8 * 1024 * 1024  # of the rendered text, and of any product inside a template
# templates test these for none, and for templates what is undefined is not none
ABSENT: Mapping[str, None] = {"tools": None, "documents": None}
RESERVED = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})


# its own words, and what Jinja's operators and filters raise for values that do not fit
_REFUSALS = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError),
    *(AttributeError, AssertionError),
)


class _Namespace(jinja2.utils.Namespace):
    """Names that begin with an underscore are Python's own: the reference refuses them too."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a name can be `self`
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template cannot hold {name!r}")


class _Sandbox(Dialect):
    """What templates may call, and no product without a bound."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__()
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        first, second = _size(left), _size(right)
        size = first * second if operator == "*" else second * first.bit_length()
        if size > MAX_CHARACTERS:
            raise SecurityError("the chat template builds too large a value")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return abs(int(value)) if isinstance(value, int | float) else len(value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


class ChatTemplate:
    """One compiled template; what it writes is bounded in size.

    `knows_developer`: it names this role, so messages of it need not be the system's.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises BadRequest when the source is not a template."""
        self._sandbox = _Sandbox()
        self._source = source
        self._special_tokens = dict(special_tokens)
        self.knows_developer = re.search(r"""["']developer["']""", source) is not None
        try:
            self._template = self._sandbox.read(source)
        except CheckpointError as error:
            raise BadRequest(f"the model's chat template is damaged: {error}") from error

    @cached_property
    def literals(self) -> str:
        """The texts that the template has in it, written and compared with, a null between two."""
        tree = self._sandbox.parse(self._source)
        written = (node.data for node in tree.find_all(TemplateData))
        constants = (node.value for node in tree.find_all(Const) if isinstance(node.value, str))
        return "\0".join([*written, *constants])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. Raises BadRequest when the template refuses or exceeds a bound."""
        reserved = RESERVED.intersection(variables or {})
        if reserved:
            raise BadRequest(
                f"chat_template_kwargs: {min(reserved)} cannot be set", "chat_template_kwargs"
            )
        read = [as_read(message, self._reading_rules) for message in messages]
        return self._fill(read, add_generation_prompt, variables or {})

    @cached_property
    def _reading_rules(self) -> ReadingRules:
        return find_reading_rules(lambda messages: self._fill(messages, True, {}))

    def _fill(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        values = {**ABSENT, **self._special_tokens, **variables}
        values |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._collect(values)
        except _REFUSALS as error:
            raise BadRequest(f"the chat template refused: {error}", "messages") from error
        except RecursionError as error:
            raise BadRequest("the chat template nests too deeply", "messages") from error

    def _collect(self, values: Mapping[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(values):
            parts.append(part)
            size += len(part)
            if size > MAX_CHARACTERS:
                raise SecurityError("the chat template writes too much")
        return "".join(parts)
