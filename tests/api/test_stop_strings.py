from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from blockllm.api.stop_strings import StopStringFinder

LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[str, str | None]:
    finder = StopStringFinder(stops, include)
    shown = ""
    for piece in pieces:
        shown += finder.feed(piece)
        if finder.found is not None:
            return shown, finder.found
    return shown + finder.flush(), None


def plain(stops: list[str], text: str, include: bool = False) -> tuple[str, str | None]:
    """The plain twin: look at every prefix of the text."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            found = max(complete, key=len)
            return text[: end if include else end - len(found)], found
    return text, None


@given(STOPS, st.lists(LETTERS, max_size=8), st.booleans())
@example(["abc"[:2], "b"], ["a", "b"], False)
def test_equals_the_plain_twin_whatever_the_pieces(
    stops: list[str], pieces: list[str], include: bool
):
    assert run(stops, pieces, include) == plain(stops, "".join(pieces), include)


@given(STOPS, LETTERS)
def test_text_is_held_back_only_while_it_may_become_a_stop(stops: list[str], text: str):
    finder = StopStringFinder(stops)
    shown = ""
    for end, character in enumerate(text, 1):
        shown += finder.feed(character)
        if finder.found is not None:
            return
        seen = text[:end]
        longest = max(
            (k for stop in stops for k in range(len(stop)) if seen.endswith(stop[:k])), default=0
        )
        assert shown == seen[: end - longest]


def test_without_stops_nothing_is_held_back():
    finder = StopStringFinder([])
    assert finder.feed("abc") == "abc"
    assert finder.flush() == ""


def test_time_does_not_depend_on_the_length_of_near_misses():
    finder = StopStringFinder(["a" * 1000 + "b"])
    for _ in range(200):
        assert len(finder.feed("a" * 100)) in (0, 100)
    assert len(finder.flush()) == 1000
