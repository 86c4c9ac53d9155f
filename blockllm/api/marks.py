"""Which parts of a rendered prompt came from the text of messages and spell a control token.

The template is rendered once more with marks around every such part of the messages. If that is
the ordinary prompt with marks in it, they say where the parts are. A template may look at lengths
or slices, which marks change: then the parts are spelled wrong instead, letter for letter, and
found by comparing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blockllm.errors import BadRequest

_LETTERS = "qzxjkvQZXJKV0123456789"
_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))  # characters of no script
_ASSISTANT = "assistant"

Messages = Sequence[Mapping[str, Any]]
Variables = Mapping[str, Any]
Render = Callable[[Messages, Variables], str]
Span = tuple[int, int]  # of characters, the end excluded


class Located(NamedTuple):
    """A prompt, and the spans of it that must not become control tokens."""

    text: str
    spans: list[Span]


class ControlTokens:
    """The tokens that only a template may write; `own` are those of them that are no special
    tokens: models write these too, and templates look for them in what an assistant said."""

    def __init__(self, tokens: Iterable[str], own: Iterable[str] = ()) -> None:
        self.texts = frozenset(tokens)
        self._all = _pattern(self.texts)
        self._special = _pattern(self.texts.difference(own))
        self._lengths = sorted({len(token) for token in self.texts}, reverse=True)

    def occur_in(self, value: Any) -> bool:
        """Whether a text in this message, list or variable spells one."""
        return any(self._all.search(text) for text in _texts(value))

    def locate(
        self, text: str, messages: Messages, variables: Variables, render: Render
    ) -> Located:
        """`text` is the ordinary prompt. Raises BadRequest when the template refuses the marks."""
        start, end = _free_characters(2, text, (messages, variables))

        def mark(value: Any, pattern: re.Pattern[str]) -> Any:
            return _replace(value, pattern, lambda match: f"{start}{match[0]}{end}")

        for spares_own in (False, True):
            changed = self._changed(messages, mark, spares_own)
            marked = self._unmark(render(changed, mark(variables, self._all)), start, end)
            if marked.text == text:
                return marked
        return self._compare(text, messages, variables, render) or marked

    def _changed(
        self,
        messages: Messages,
        change: Callable[[Any, re.Pattern[str]], Any],
        spares_own: bool,
    ) -> list[Any]:
        return [
            change(
                message,
                self._special if spares_own and message.get("role") == _ASSISTANT else self._all,
            )
            for message in messages
        ]

    def _unmark(self, marked: str, start: str, end: str) -> Located:
        """The text without marks. One mark is enough: a template may have cut between the two."""
        pieces = re.split(f"([{start}{end}])", marked)
        text = "".join(pieces[::2])
        spans, position = set(), 0
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            position += len(piece)
            for length in self._lengths if mark else ():
                first = position if mark == start else max(0, position - length)
                if text[first : first + length] in self.texts:
                    spans.add((first, first + length))
                    break
        return Located(text, _joined(spans))

    def _compare(
        self, text: str, messages: Messages, variables: Variables, render: Render
    ) -> Located | None:
        """Where the prompt changes with wrong spellings; None if more changes than they."""
        wrong = {token: _misspell(token, self._all) for token in self.texts}

        def spell(value: Any, pattern: re.Pattern[str]) -> Any:
            return _replace(value, pattern, lambda match: wrong[match[0]])

        try:
            other = render(self._changed(messages, spell, True), spell(variables, self._all))
        except BadRequest:
            return None
        if len(other) != len(text):
            return None
        changes = {pair for token in wrong for pair in zip(token, wrong[token], strict=True)}
        spans = []
        for position, pair in enumerate(zip(text, other, strict=True)):
            if pair[0] != pair[1]:
                if pair not in changes:
                    return None
                spans += self._around(position, text, other, wrong)
        return Located(text, _joined(spans))

    def _around(self, position: int, text: str, other: str, wrong: Mapping[str, str]) -> list[Span]:
        """The control token that is spelled wrong at a position of the other text; none where the
        template has cut it."""
        for length in self._lengths:
            for first in range(max(0, position - length + 1), position + 1):
                token = text[first : first + length]
                if token in self.texts and other[first : first + length] == wrong[token]:
                    return [(first, first + length)]
        return []


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that overlap as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            start, end = found[-1][0], max(end, found.pop()[1])
        found.append((start, end))
    return found


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, of two that begin alike the longer one."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _replace(value: Any, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(new, value)
    if isinstance(value, Mapping):
        return {
            _replace(key, pattern, new): _replace(item, pattern, new) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replace(item, pattern, new) for item in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _free_characters(count: int, *values: Any) -> list[str]:
    used = {character for value in values for text in _texts(value) for character in text}
    free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    found = [character for character, _ in zip(free, range(count), strict=False)]
    if len(found) < count:
        raise BadRequest("messages: the text uses every private character of Unicode", "messages")
    return found


def _misspell(token: str, pattern: re.Pattern[str]) -> str:
    """The token with one character changed, so that no control token is left in it."""
    for position, letter in ((p, letter) for p in range(len(token)) for letter in _LETTERS):
        if token[position].isalnum() and token[position] != letter:
            changed = token[:position] + letter + token[position + 1 :]
            if not pattern.search(changed):
                return changed
    return token
