"""Stop strings in a stream of text, whatever the token boundaries are."""

from __future__ import annotations

from collections.abc import Sequence


class _Matcher:
    """Knuth-Morris-Pratt: how much of one stop string the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0] * len(stop)
        for position in range(1, len(stop)):
            length = self._fallback[position - 1]
            while length and stop[position] != stop[length]:
                length = self._fallback[length - 1]
            self._fallback[position] = length + (stop[position] == stop[length])

    def feed(self, character: str) -> bool:
        """True when the stop string is complete with this character."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


class StopStringFinder:
    """Finds the stop string that is completed first (the longest, if several are).

    Text is held back only as long as it may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._include = include
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Text that may be shown now; after `found` is set, nothing more."""
        if not self._matchers:
            return text
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            complete = [m.stop for m in self._matchers if m.feed(buffer[position])]
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                end = position + 1
                return buffer[: end if self._include else end - len(self.found)]
        num_held = max(matcher.matched for matcher in self._matchers)
        self._held = buffer[len(buffer) - num_held :]
        return buffer[: len(buffer) - num_held]

    def flush(self) -> str:
        """What was held back; nothing more will come."""
        held, self._held = self._held, ""
        return held
