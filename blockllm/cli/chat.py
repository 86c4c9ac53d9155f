"""`blockllm chat`: talk to one model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.core import Sampling
from blockllm.errors import BlockllmError

if TYPE_CHECKING:
    from blockllm.api.talk import Messages, Partner


def chat(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    zoo: Annotated[str, typer.Option(envvar="BLOCKLLM_ZOO", help="Folder of the zoo.")] = "",
    url: Annotated[str, typer.Option(help="Use a running server instead, as http://…:8000.")] = "",
    api_key: Annotated[str, typer.Option(envvar="BLOCKLLM_API_KEY", help="Key for --url.")] = "",
    prompt: Annotated[str | None, typer.Option(help="Answer this once and end.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    memory: Annotated[str | None, typer.Option(help="Weights and KV together, as 8GiB.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
) -> None:
    """Talk to a model: /reset forgets, /exit leaves, Ctrl-C stops an answer."""
    from blockllm.api.llm import LLM
    from blockllm.api.talk import LocalPartner, RemotePartner

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    if url:
        return converse(RemotePartner(url, api_key, model, sampling), prompt)
    with LLM(model, zoo or None, memory=memory, device=device) as llm:
        converse(LocalPartner(llm, model, sampling), prompt)


def converse(partner: Partner, prompt: str | None) -> None:
    """One answer to `prompt`, or a conversation until the user leaves."""
    if prompt is not None:
        _say(partner, [{"role": "user", "content": prompt}])
        return
    if not partner.has_template:
        print("(no chat template: the model continues what you write)")
    messages: Messages = []
    while (text := _ask()) != "/exit":
        if text == "/reset":
            messages = []
            print("(forgotten)")
        elif text.strip():
            messages.append({"role": "user", "content": text})
            try:
                messages.append({"role": "assistant", "content": _say(partner, messages)})
            except BlockllmError as error:
                print(f"error: {error}", file=sys.stderr)
                messages.pop()


def _ask() -> str:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return "/exit"


def _say(partner: Partner, messages: Messages) -> str:
    """Print the answer as it comes; Ctrl-C keeps what there is."""
    if partner.has_template:
        pieces: Iterator[str] = partner.answer(messages)
    else:
        pieces = partner.proceed(messages[-1]["content"])
    parts: list[str] = []
    try:
        for piece in pieces:
            parts.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # both partners answer with generators
        print(" (stopped)", end="")
    print()
    return "".join(parts)
