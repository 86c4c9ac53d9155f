"""Plain English, tested: pages, docstrings and comments say who or what does something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RIDDLES = re.compile(
    r"\b(whoever|whomever|those who|nobody|everybody|somebody|who meets whom|the same for)\b", re.I
)
SOURCES = [
    path
    for folder in ("blockllm", "tools")
    for kind in ("py", "cpp", "h", "sql")
    for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "docs/bench").glob("*.toml"))


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda p: str(p.relative_to(ROOT)))
def test_subjects_are_named(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    words = " ".join(re.sub(r"^\s*(#|//|--) ?", "", line) for line in lines).split()
    found = RIDDLES.findall(" ".join(words))
    assert not found, f"{found}: say which sequence, model, process or client"
