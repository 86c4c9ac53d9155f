from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockllm.api.chat_models import ChatModel, LocalChatModel, RemoteChatModel
from blockllm.api.llm import LLM
from blockllm.cli.chat import converse
from blockllm.errors import EngineError, ModelNotFound
from tests.api.family import FakeZoo
from tests.api.serving import RunningServer
from tests.cluster.fake_engine import FakeEngine

SAMPLING = {"max_tokens": 5, "temperature": 0.0}


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM.over(FakeZoo(folder / "zoo"), FakeEngine) as llm:
        yield llm


def local(llm: LLM) -> Callable[[str], ChatModel]:
    return lambda name: LocalChatModel(llm, name, SAMPLING)


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    waiting = iter(lines)

    def answer(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)


def test_one_answer(llm: LLM, capsys: pytest.CaptureFixture[str]):
    converse(local(llm), "base", "The quick")
    assert capsys.readouterr().out == "The quick\n\n"


def test_a_conversation_remembers_and_forgets(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen = []
    prompt = llm.chat_prompt
    monkeypatch.setattr(llm, "chat_prompt", lambda m, n: (seen.append(len(m)), prompt(m, n))[1])
    type_in(monkeypatch, "The", "  ", "fox", "/clear", "dog")
    converse(local(llm), "base", None)
    assert seen == [1, 3, 1]
    assert "(forgotten)" in capsys.readouterr().out


def test_without_a_template_the_text_goes_on(llm: LLM, capsys: pytest.CaptureFixture[str]):
    converse(local(llm), "plain", "The quick")
    assert capsys.readouterr().out == "The quickThe\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Interrupted:
        name, has_template = "base", True
        closed = False

        def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
            try:
                yield "half an "
                raise KeyboardInterrupt
            finally:
                self.closed = True

    model = Interrupted()
    type_in(monkeypatch, "hello", "/exit")
    converse(lambda name: model, "base", None)  # type: ignore[arg-type, return-value]
    assert capsys.readouterr().out == "half an  (stopped)\n"
    assert model.closed


def test_a_running_server(server: RunningServer, capsys: pytest.CaptureFixture[str]):
    def remote(url: str) -> Callable[[str], ChatModel]:
        return lambda name: RemoteChatModel(url, "", name, SAMPLING)

    converse(remote(server.url + "/v1"), "base", "The quick")
    converse(remote(server.url), "plain", "The quick")
    assert capsys.readouterr().out == "The quick\n\nThe quickThe\n"
    with pytest.raises(ModelNotFound):
        RemoteChatModel(server.url, "", "nix", SAMPLING)
    with pytest.raises(EngineError, match="refused"):
        RemoteChatModel("http://127.0.0.1:1", "", "base", SAMPLING)


def test_errors_in_a_conversation_do_not_end_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    type_in(monkeypatch, "The " * 600, "fox")
    converse(local(llm), "base", None)
    captured = capsys.readouterr()
    assert "error: prompt: got" in captured.err
    assert captured.out.startswith("fox")


def test_commands_never_reach_the_model(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen: list[str] = []

    class Watched(LocalChatModel):
        def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
            seen.append(messages[-1]["content"])
            yield f"{self.name} heard it"

    lines = (
        "/help",
        "/model",
        "/model tuned",
        "hello",
        "/model nix",
        "/etc/hosts?",
        " /etc/hosts?",
    )
    type_in(monkeypatch, *lines, "/clear now", "/exit")
    converse(lambda name: Watched(llm, name, SAMPLING), "base", None)
    captured = capsys.readouterr()
    assert seen == ["hello", "/etc/hosts?"]
    assert "/model NAME" in captured.out
    assert captured.out.count("(talking to base)") == captured.out.count("(talking to tuned)") == 1
    assert "(no command /etc/hosts?; /help lists them" in captured.out
    assert captured.out.count("tuned heard it") == 2
    assert "error: no model 'nix' is served" in captured.err
    assert captured.out.endswith("(forgotten)\n")
