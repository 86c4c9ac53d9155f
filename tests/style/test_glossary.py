"""The glossary, held to the code: its words occur there, and it has every class of the engine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import blockllm

PACKAGE = Path(blockllm.__file__).parent
ENGINE = PACKAGE / "engine"
PAGE = PACKAGE.parent / "docs/glossary.md"
CLASS = re.compile(r"`([A-Z]\w+)`")


def classes_of_the_engine() -> dict[str, set[str]]:
    """Public classes by room."""
    found: dict[str, set[str]] = {}
    for path in ENGINE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        room = path.relative_to(ENGINE).parts[0].removesuffix(".py")
        found.setdefault(room, set()).update(n for n in names if not n.startswith("_"))
    return found


def rows() -> list[list[str]]:
    """Cells of the page's tables, row by row."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]


def classes_of_the_page() -> dict[str, set[str]]:
    """Classes by room, as the page has them."""
    listed: dict[str, set[str]] = {}
    for room, *cells in rows():
        if room.startswith("`"):
            listed.setdefault(room.strip("`"), set()).update(CLASS.findall(cells[0]))
    return listed


def words_of_the_code() -> str:
    """All text of the package in lower case, names of the code split into their words."""
    paths = [path for kind in ("py", "cpp", "h", "sql") for path in PACKAGE.rglob(f"*.{kind}")]
    text = " ".join(path.read_text(encoding="utf-8") for path in paths)
    return re.sub(r"_|\s+|(?<=[a-z])(?=[A-Z])", " ", text).lower()


def test_every_class_of_the_engine_is_in_the_glossary() -> None:
    listed = classes_of_the_page()
    lacking = [
        f"| `{room}` | {', '.join(f'`{name}`' for name in sorted(names))} | what it is, shortly |"
        for room, every in classes_of_the_engine().items()
        if (names := every - listed.get(room, set()))
    ]
    assert not lacking, "docs/glossary.md, 'Classes of the engine': add\n" + "\n".join(lacking)


def test_every_class_of_the_glossary_is_in_the_engine() -> None:
    known = classes_of_the_engine()
    gone = [
        f"{room}: {', '.join(sorted(names))}"
        for room, every in classes_of_the_page().items()
        if (names := every - known.get(room, set()))
    ]
    assert not gone, "docs/glossary.md, 'Classes of the engine': remove\n" + "\n".join(gone)


def test_every_word_of_the_glossary_occurs_in_the_code() -> None:
    code = words_of_the_code()
    words = [row[0].strip("*") for row in rows() if row[0].startswith("**")]
    assert len(words) > 40 and words == sorted(words)
    unused = [word for word in words if not re.search(rf"\b{re.escape(word)}(e?s|ed)?\b", code)]
    assert not unused, f"docs/glossary.md: the code knows no {unused}"
