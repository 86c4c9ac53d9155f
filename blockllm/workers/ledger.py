"""Faults of foreign content, by its digest: what misbehaves again and again is switched off."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping

from blockllm.errors import ContentFault

logger = logging.getLogger(__name__)


class Ledger:
    """The faults of the last `seconds`. Content with `most` of them is off until one is older."""

    def __init__(
        self, most: int = 5, seconds: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._faults: dict[str, deque[float]] = {}  # by digest

    def check(self, contents: Mapping[str, str]) -> None:
        """Raise ContentFault when one of these is switched off."""
        for part in self.off(contents) if self._faults else ():
            raise ContentFault(
                f"is switched off: it broke its limits {self._most} times within "
                f"{self._seconds:g} s",
                part,
                "off",
            )

    def off(self, contents: Mapping[str, str]) -> list[str]:
        """The parts that are switched off."""
        return [part for part, digest in contents.items() if self._count(digest) >= self._most]

    def is_suspect(self, contents: Mapping[str, str]) -> bool:
        """Whether one of these has faults."""
        return bool(self._faults) and any(map(self._count, contents.values()))

    def book(self, part: str, contents: Mapping[str, str]) -> None:
        """A fault of a part, or of all where that is not known."""
        for each in [part] if part in contents else contents:
            digest = contents[each]
            times = self._faults.setdefault(digest, deque(maxlen=self._most))
            times.append(self._clock())
            if self._count(digest) >= self._most:
                text = "a %s (digest %.12s) is switched off: it broke its limits %d times"
                logger.error(text, each, digest, self._most)

    def _count(self, digest: str) -> int:
        times = self._faults.get(digest)
        if times is None:
            return 0
        while times and self._clock() - times[0] > self._seconds:
            times.popleft()
        if not times:
            del self._faults[digest]
        return len(times)
