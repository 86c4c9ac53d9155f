"""Mailboxes of clients that do not read: what waits is bounded over all of them."""

from __future__ import annotations

import asyncio

import pytest

from blockllm.api.choice import Choice, TextRules
from blockllm.api.generation import Generation
from blockllm.api.tokenizer import TokenTable
from blockllm.cluster.messages import Tokens
from blockllm.cluster.streams import Backlog, Item, Mailbox, Sink, Streams
from blockllm.core import Request, Sampling, TokenEvent, TokenLogprobs
from blockllm.errors import Overloaded
from tests.api.family import byte_level_tokenizer

TOP = TokenLogprobs(-0.5, tuple((token, -1.0) for token in range(9)))


class Agent:
    """Makes tokens when told to, whether they are taken or not."""

    def __init__(self) -> None:
        self.streams = Streams()

    def submit(self, request: Request, sink: Sink) -> None:
        self.streams.open(request.id, sink)

    def cancel(self, request_id: str) -> None:
        self.streams.close(request_id)

    def turn(self, *requests: str) -> None:
        events = [TokenEvent(request, 70, TOP) for request in requests]
        self.streams.deliver(Tokens(events))


def generation(agent: Agent, backlog: Backlog, *requests: str) -> Generation:
    table = TokenTable(byte_level_tokenizer())
    made = [Request(name, "m", (1,), Sampling(max_tokens=10_000)) for name in requests]
    choices = [Choice(i, request, table, TextRules()) for i, request in enumerate(made)]
    return Generation(agent, choices, (), backlog)


def test_the_client_with_most_to_read_loses_its_requests_and_others_go_on() -> None:
    agent, backlog = Agent(), Backlog(100)

    async def run() -> None:
        with generation(agent, backlog, "a1", "a2") as lazy, generation(agent, backlog, "b") as own:
            unread, read = lazy.pieces(), own.pieces()
            waiting = asyncio.ensure_future(anext(unread)), asyncio.ensure_future(anext(read))
            await asyncio.sleep(0)
            agent.turn("a1", "a2", "b")
            await asyncio.gather(*waiting)
            for _ in range(40):
                agent.turn("a1", "a2", "b")
                assert len(backlog) <= 100
                (piece,) = await anext(read)
                assert piece.token_ids == [70]
            assert len(agent.streams) == 1, "the others are cancelled"
            with pytest.raises(Overloaded, match="waited to be read: read the stream faster"):
                await anext(unread)
            agent.turn("b")
            assert len(backlog) == 10
        assert len(backlog) == len(agent.streams) == 0, "nothing is counted for those that left"

    asyncio.run(run())


def test_without_a_bound_everything_waits() -> None:
    mailbox = Mailbox()
    items: list[Item] = [TokenEvent("a", token, TOP) for token in range(1000)]
    for item in items:
        mailbox.put(item)
    assert asyncio.run(mailbox.take()) == items
