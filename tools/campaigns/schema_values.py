"""Values that an OpenAPI document allows, drawn from the bytes of an input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.campaigns.draws import Draws

MAX_ITEMS = 3
MAX_TEXT = 12  # characters, unless more are needed
MAX_DEPTH = 6
_WORDS = ("hi", "The quick brown fox", "a", "é", "日本", "<s>", "user", "text", "\n", "0", "x\0y")


class Operation(NamedTuple):
    """One method of one path; `body` is the schema of what is sent, None for nothing."""

    method: str
    path: str
    body: Any
    statuses: frozenset[str]


def operations_of(document: dict[str, Any]) -> Iterator[Operation]:
    """Every operation of a document."""
    for path, item in document["paths"].items():
        for method in sorted(item.keys() & {"get", "post", "put", "delete", "patch"}):
            about = item[method]
            content = about.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            yield Operation(method.upper(), path, schema, frozenset(about["responses"]))


class Values:
    """Draws values of schemas of one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def draw(self, schema: Any, draws: Draws, depth: int = MAX_DEPTH) -> Any:
        """A value that the schema allows, as far as the keywords of our document say."""
        if schema is True or not schema:
            return draws.value(_WORDS, 1)
        if "$ref" in schema:
            return self.draw(self._resolve(schema["$ref"]), draws, depth)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                choices = schema[several] if depth > 0 else schema[several][-1:]
                return self.draw(draws.pick(choices), draws, depth - 1)
        if "enum" in schema or "const" in schema:
            return draws.pick(schema.get("enum", [schema.get("const")]))
        kind = schema.get("type")
        kind = draws.pick(kind) if isinstance(kind, list) else kind
        if kind == "object" or "properties" in schema:
            return self._object(schema, draws, depth)
        if kind == "array":
            return self._array(schema, draws, depth)
        return _plain(kind, schema, draws)

    def _resolve(self, reference: str) -> Any:
        found: Any = self._document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        return found

    def _object(self, schema: Any, draws: Draws, depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        value = {
            name: self.draw(part, draws, depth - 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or (depth > 0 and draws.below(3) == 0)
        }
        more = schema.get("additionalProperties", False)
        if more not in (False, None) and depth > 0:
            for _ in range(draws.below(MAX_ITEMS)):
                value.setdefault(str(draws.below(20)), self.draw(more, draws, depth - 1))
        return value

    def _array(self, schema: Any, draws: Draws, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", least + MAX_ITEMS), least + MAX_ITEMS)
        count = least + draws.below(most - least + 1)
        return [self.draw(schema.get("items", True), draws, depth - 1) for _ in range(count)]


def _plain(kind: str | None, schema: Any, draws: Draws) -> Any:
    if kind == "null":
        return None
    if kind == "boolean":
        return bool(draws.below(2))
    if kind == "string":
        least, most = schema.get("minLength", 0), schema.get("maxLength", MAX_TEXT)
        text = draws.pick(_WORDS)[:most]
        return text + "x" * (least - len(text))
    low = schema.get("minimum", schema.get("exclusiveMinimum", -3))
    high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 20))
    if kind == "integer":
        inner = low + int("exclusiveMinimum" in schema)
        edges = (inner, high - int("exclusiveMaximum" in schema))
        return draws.pick(edges) if draws.below(2) else min(inner + draws.below(20), edges[1])
    share = draws.below(101) / 100
    if "exclusiveMinimum" in schema or "exclusiveMaximum" in schema:
        share = min(max(share, 0.01), 0.99)
    return low + share * (high - low)
