"""The Jinja that chat templates are written in, as transformers configures it."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from blockllm.errors import CheckpointError

_MAX_CHARACTERS = 1 << 20  # the longest published template has 20,000


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks text for training; here it is plain text,
    but what is set inside stays inside, as in the reference.
    """

    tags = {"generation"}  # noqa: RUF012 - the name and type Jinja asks for

    def parse(self, parser: Parser) -> Node:
        """The statements inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


@pass_context
def _unchanged(context: Context, value: Any) -> Any:
    return value


class Dialect(ImmutableSandboxedEnvironment):
    """Syntax and filters; a subclass says what a template may call and compute."""

    def __init__(self) -> None:
        # constants would be computed while a template is compiled, without a bound: by the
        # optimiser, and for what is written out unless that has to wait for the context
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            optimized=False,
            finalize=_unchanged,
        )
        self.filters["tojson"] = _tojson

    def read(self, source: str) -> Template:
        """The compiled template. Raises CheckpointError when the source is none."""
        if len(source) > _MAX_CHARACTERS:
            raise CheckpointError(f"longer than {_MAX_CHARACTERS} characters")
        try:
            return self.from_string(source)
        except TemplateError as error:
            line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise CheckpointError(f"{line}{error}") from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # Python's own limits, met by what Jinja makes of the source
            raise CheckpointError(f"nests too deeply: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML characters, which models have not seen in training
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
