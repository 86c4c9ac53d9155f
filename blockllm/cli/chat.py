"""`blockllm chat`: talk to one model in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.cli.output import say
from blockllm.errors import BlockllmError

if TYPE_CHECKING:
    from blockllm.api.chat_models import ChatModel, Messages

_HELP = """\
/clear        forget the conversation
/model        say which model answers
/model NAME   talk to another one; what was said stays
/exit         leave, as Ctrl-D does
/help         this list
A line that begins with a space is sent as it is. Ctrl-C stops an answer."""


def chat(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    zoo: Annotated[str, typer.Option(envvar="BLOCKLLM_ZOO", help="Folder of the zoo.")] = "",
    url: Annotated[str, typer.Option(help="Use a running server instead, as http://…:8000.")] = "",
    api_key: Annotated[str, typer.Option(envvar="BLOCKLLM_API_KEY", help="Key for --url.")] = "",
    api_key_file: Annotated[
        str, typer.Option(envvar="BLOCKLLM_API_KEY_FILE", help="File that begins with the key.")
    ] = "",
    prompt: Annotated[str | None, typer.Option(help="Answer this once and end.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; else the model's own, or 1.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    memory: Annotated[str | None, typer.Option(help="Weights and KV together, as 8GiB.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
) -> None:
    """Talk to a model; Ctrl-C stops an answer, /help lists commands."""
    from blockllm.api.chat_models import LocalChatModel, RemoteChatModel
    from blockllm.api.keys import own_key
    from blockllm.api.llm import LLM

    sampling: dict[str, float] = {"max_tokens": max_tokens}
    if temperature is not None:
        sampling["temperature"] = temperature
    if url:
        key = own_key(api_key, api_key_file)
        return converse(lambda name: RemoteChatModel(url, key, name, sampling), model, prompt)
    with LLM(model, zoo or None, memory=memory, device=device) as llm:
        converse(lambda name: LocalChatModel(llm, name, sampling), model, prompt)


def converse(open_model: Callable[[str], ChatModel], name: str, prompt: str | None) -> None:
    """One answer to `prompt`, or a conversation until the user leaves. Raises what `open_model`
    raises for the first model."""
    model = open_model(name)
    if prompt is not None:
        _say(model, [{"role": "user", "content": prompt}])
        return
    conversation = _Conversation(open_model, model)
    while (line := _ask()) != "/exit":
        try:
            conversation.handle(line)
        except BlockllmError as error:
            say(f"error: {error}", error=True)


class _Conversation:
    """A conversation: lines that begin with / are commands, others go to the model."""

    def __init__(self, open_model: Callable[[str], ChatModel], model: ChatModel) -> None:
        self._open = open_model
        self._messages: Messages = []
        self._switch_to(model)

    def handle(self, line: str) -> None:
        """Carry out one line. Raises BlockllmError."""
        command, _, argument = line.partition(" ")
        match command:
            case "/help":
                say(_HELP, keep="\n")
            case "/clear":
                self._messages = []
                say("(forgotten)")
            case "/model" if argument.strip():
                self._switch_to(self._open(argument.strip()))
                say(f"(talking to {self._model.name})")
            case "/model":
                say(f"(talking to {self._model.name})")
            case _ if command.startswith("/"):
                say(f"(no command {command}; /help lists them, a space before / sends the line)")
            case _ if line.strip():
                self._send(line.strip())

    def _switch_to(self, model: ChatModel) -> None:
        self._model = model
        if not model.has_template:
            say("(no chat template: the model continues what you write)")

    def _send(self, text: str) -> None:
        asked: Messages = [*self._messages, {"role": "user", "content": text}]
        answer = _say(self._model, asked)
        self._messages = [*asked, {"role": "assistant", "content": answer}]


def _ask() -> str:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        say()
        return "/exit"


def _say(model: ChatModel, messages: Messages) -> str:
    """Print the answer as it comes; Ctrl-C keeps what there is."""
    if model.has_template:
        pieces: Iterator[str] = model.answer(messages)
    else:
        pieces = model.complete(messages[-1]["content"])
    parts: list[str] = []
    try:
        for piece in pieces:
            parts.append(piece)
            say(piece, end="", keep="\n\t")
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # both kinds answer with generators
        say(" (stopped)", end="")
    say()
    return "".join(parts)
