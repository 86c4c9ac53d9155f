"""Prose is wrapped; tables, fences, headings and items keep their shape."""

from __future__ import annotations

from tools.pages.wrap import WIDTH, wrap, wrap_page


def test_prose_is_wrapped_and_nothing_is_lost() -> None:
    text = "word " * 60 + "\n\n" + "other " * 40
    wrapped = wrap_page(text)
    assert max(map(len, wrapped.splitlines())) <= WIDTH
    assert wrapped.split() == text.split()


def test_items_are_indented_and_stay_apart() -> None:
    first, second = wrap_page("- " + "a " * 80 + "\n- b\n").split("\n- ")
    assert first.splitlines()[1].startswith("  a")
    assert second == "b\n"


def test_tables_fences_and_headings_stay() -> None:
    long = "x " * 80
    text = f"# {long}\n\n| {long} |\n\n```\n{long}\n```\n"
    assert wrap_page(text) == text


def test_a_line_never_begins_like_an_item() -> None:
    for length in range(80, 100):
        wrapped = wrap("y" * length + " - z 1. + end")
        assert not any(line.startswith(("- ", "1. ", "+ ")) for line in wrapped.splitlines())


def test_short_code_and_links_stay_on_one_line() -> None:
    for length in range(70, 100):
        wrapped = wrap("y" * length + " `zoo add` and [the text](page.md)")
        assert "`zoo add`" in wrapped and "[the text](" in wrapped
