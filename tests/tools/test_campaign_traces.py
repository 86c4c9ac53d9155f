"""A short run of the campaign of traces, and that it notices a wrong answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.zoo import Zoo
from tools.campaigns import traces


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return traces.build(Path(tmp_path_factory.mktemp("traces")))


def test_answers_in_any_company_are_those_alone(zoo: Zoo) -> None:
    book = traces.Book(zoo)
    for seed in (1, 3):
        found = traces.play(zoo, book, seed)
        assert found.wrong == []
        assert found.counts["answered"] > traces.OF_A_TRACE // 2


def test_a_wrong_answer_is_noticed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    book = traces.Book(zoo)
    real = book.answer
    monkeypatch.setattr(book, "answer", lambda number: real((number + 1) % traces.QUESTIONS))
    monkeypatch.setattr(traces, "OF_A_TRACE", 5)
    assert len(traces.play(zoo, book, 1).wrong) >= 4
