"""Text of others on a terminal or in a log: what would steer it is shown instead of done.

Names of folders, answers of models and messages about files may hold escape sequences, which move
the cursor, and overrides of the writing direction, which let one text look like another.
"""

from __future__ import annotations

import logging
import re

# control characters, halves of characters (bytes of a path that are no text), line separators, and
# what embeds, overrides or isolates a direction
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: object, keep: str = "") -> str:
    r"""A text in which each steering character is spelt, as \x1b or \u202e, but those in `keep`."""
    return _STEERING.sub(lambda match: _spell(match[0], keep), str(text))


def plain_json(text: str) -> str:
    """JSON that says the same, with the steering characters of its strings escaped."""
    return _STEERING.sub(lambda m: m[0] if m[0] == "\n" else f"\\u{ord(m[0]):04x}", text)


class PlainFormatter(logging.Formatter):
    """Records whose further lines are indented: a message cannot look like another record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The lines of a message."""
        return super().formatMessage(record).replace("\n", "\n    ")

    def format(self, record: logging.LogRecord) -> str:
        """The message and, with an exception, its traceback."""
        return plain(super().format(record), keep="\n\t")


def log_plainly(level: str, process: str) -> None:
    """Log to standard error: time, process, level, message."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(f"%(asctime)s {process} %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _spell(character: str, keep: str) -> str:
    if character in keep:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
