"""Wraps the prose of Markdown pages at 100 columns; tables, fences and headings stay as they are.

python -m tools.pages.wrap FILE…
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

WIDTH = 100
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.) ")
_FIXED = re.compile(r"^(\||#|!\[|<|>|\s*$)")


def wrap(paragraph: str) -> str:
    """One paragraph or list item at the width; an item's further lines are indented."""
    item = _ITEM.match(paragraph)
    first = item.group(0) if item else ""
    lines = textwrap.wrap(
        _glued(" ".join(paragraph[len(first) :].split())),
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


def _glued(words: str) -> str:
    """Short code and links keep their spaces, so that they stay on one line; what would begin a
    list item or a heading stays behind the word before it."""
    kept = r"`[^`]{1,60}`|\[[^\]]{1,40}\]\("
    words = re.sub(kept, lambda found: found.group(0).replace(" ", "\0"), words)
    return re.sub(r" (?=([-+*#>|]|\d+\.) )", "\0", words)


def wrap_page(text: str) -> str:
    """A whole page."""
    out: list[str] = []
    open_lines: list[str] = []
    in_fence = False

    def close() -> None:
        if open_lines:
            out.append(wrap("\n".join(open_lines)))
            open_lines.clear()

    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            close()
            in_fence = not in_fence
            out.append(line)
        elif in_fence or _FIXED.match(line):
            close()
            out.append(line)
        else:
            if _ITEM.match(line):
                close()
            open_lines.append(line)
    close()
    return "\n".join(out)


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(wrap_page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
