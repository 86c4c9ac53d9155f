"""The pages, tested: width of lines and tables, links, plain words, a README of one screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from blockllm.cli.main import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"
PAGES = [README, SECURITY, *sorted((ROOT / "docs").rglob("*.md"))]
WIDTH, TABLE_WIDTH = 100, 120  # characters, the targets of links aside
WRITTEN_BY_TOOLS = ROOT / "docs/bench/results"  # tables of bench compare, as it writes them
NUMBER = re.compile(r"(?<![\w.-])\d[\d.,]*")
MOST_NUMBERS = 5  # per hundred words of README's prose


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines outside code fences, without the targets of links."""
    in_fence = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
        elif not in_fence:
            yield number, re.sub(r"\]\([^)]*\)", "]", line)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_lines_and_tables_fit_a_screen(path: Path) -> None:
    if path.is_relative_to(WRITTEN_BY_TOOLS):
        return
    wide = [
        f"{name_of(path)}:{number}: {len(line)} characters"
        for number, line in lines_of(path)
        if len(line) > (TABLE_WIDTH if line.startswith("|") else WIDTH)
    ]
    assert not wide, "\n".join(
        [*wide, "`python -m tools.pages.wrap FILE` wraps prose; split wide tables"]
    )


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{name_of(path)}: {target}"
        if anchor:
            assert anchor in anchors(page), f"{name_of(path)}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [line.lstrip("# ") for _, line in lines_of(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_page_names_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for file in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", text):
        assert (ROOT / "blockllm" / file).exists(), file


def test_the_readme_is_short_and_speaks_in_words() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 80
    prose = [line for _, line in lines_of(README) if not line.startswith(("|", "#", "!"))]
    words = " ".join(prose).split()
    numbers = NUMBER.findall(" ".join(prose))
    assert len(numbers) * 100 <= MOST_NUMBERS * len(words), numbers


def test_the_readme_repeats_figures_of_the_performance_page() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    figures = re.findall(r"\d[\d,]*\.\d+|\d+,\d+", "\n".join(rows))
    assert len(figures) >= 8
    for figure in figures:
        assert re.search(rf"\| {re.escape(figure)} \|", page), figure


def test_entries_of_the_log_are_short_and_in_order() -> None:
    text = (ROOT / "docs/log.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (.+)$", text, re.M)
    assert dates == sorted(dates) and all(re.fullmatch(r"\d{4}-\d\d-\d\d", d) for d in dates)
    entries = re.split(r"^- ", text, flags=re.M)[1:]
    assert all(entry.startswith("**") for entry in entries)
    long = {entry[:40]: len(entry.split()) for entry in entries if len(entry.split()) > 80}
    assert not long, "at most 80 words an entry"


def commands_of(path: Path) -> Iterator[str]:
    """Every command in a page's code fences and code spans, continued lines joined."""
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = re.sub(r"\\\n|\n +(?=[-\[])", " ", "\n".join(fences)).splitlines()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in [*lines, *spans]:
        command = re.match(
            r"(?:\$ |do )?(?:\S*bin/)?((?:blockllm|python -m|make) .*)", line.strip()
        )
        if command:
            yield command.group(1).partition("#")[0]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_exist(path: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for command in commands_of(path):
        words = re.findall(r"[^\s\[\]]+", command)
        if words[0] == "make":
            goals = [word for word in words[1:] if re.fullmatch(r"[a-z]+", word)]
            assert set(goals) <= set(targets), command
        elif words[0] == "python":
            if words[2].startswith(("tools.", "blockllm.")):
                module = ROOT / words[2].replace(".", "/")
                places = (module.with_suffix(".py"), module / "__main__.py")
                assert any(place.exists() for place in places), command
        else:
            check_options(command, words[1:])


def check_options(command: str, words: list[str]) -> None:
    """The subcommand exists and has every option that the words name."""
    found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    is_group = hasattr(found, "commands")
    assert not is_group or all(word.startswith("-") for word in words[:1]), command
    known = {option for parameter in found.params for option in parameter.opts}
    used = {word.partition("=")[0].rstrip(",;:.)…") for word in words if word.startswith("--")}
    assert used <= known | {"--help", "--version"}, f"{command}: {used - known}"


def test_tests_that_the_security_page_names_exist() -> None:
    for row in SECURITY.read_text(encoding="utf-8").splitlines():
        folder = ROOT
        for name in re.findall(r"`((?:tests/|test_)[^`]*)`", row):
            place = ROOT / name if name.startswith("tests/") else folder / name
            assert place.exists(), f"{row}: no {place}"
            folder = place.parent
