from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType

import pytest
import uvloop

from blockllm.chain import fingerprint
from blockllm.cluster import supervisor as supervisor_module
from blockllm.cluster import zmq_link
from blockllm.cluster.agent_main import AgentOptions
from blockllm.cluster.messages import Progress, Ready
from blockllm.cluster.streams import Mailbox
from blockllm.cluster.supervisor import Supervisor, backoff
from blockllm.config import EngineSettings
from blockllm.core import Block, Chain, ChainEntry, Request, Sampling, TokenEvent
from blockllm.errors import AgentDied, BlockllmError, EngineError, OutOfMemory, Overloaded
from tests.cluster.fake_agent import COMMAND, ROOT
from tests.cluster.fake_engine import BUSY, CRASH, SLOW

CHAINS = {name: Chain(name, (ChainEntry(Block(name, ())),), 8) for name in "ab"}


def request(name: str = "r", **sampling: object) -> Request:
    return Request(name, "base", (1, 2, 3), Sampling(**sampling))  # type: ignore[arg-type]


def supervised(
    work: Callable[[Supervisor], Awaitable[None]],
    zoo: str = "",
    hang_seconds: float = 30.0,
    **engine: object,
) -> None:
    async def main() -> None:
        options = AgentOptions(zoo, engine=EngineSettings(**engine))  # type: ignore[arg-type]
        supervisor = Supervisor(options, COMMAND, hang_seconds=hang_seconds)
        await supervisor.start()
        try:
            await work(supervisor)
        finally:
            await supervisor.stop()
        assert not supervisor.alive

    asyncio.run(main())


async def collect(mailbox: Mailbox) -> list[TokenEvent]:
    """Events up to the last one. Raises the error that ended the request."""
    events: list[TokenEvent] = []
    while not events or events[-1].finish is None:
        for item in await asyncio.wait_for(mailbox.take(), 10):
            if isinstance(item, BlockllmError):
                raise item
            events.append(item)
    return events


async def until_ready(supervisor: Supervisor) -> None:
    for _ in range(500):
        if supervisor.ready:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"still {supervisor.state}")


def test_tokens_reach_their_mailboxes():
    async def work(supervisor: Supervisor) -> None:
        boxes = [Mailbox() for _ in range(5)]
        for index, box in enumerate(boxes):
            supervisor.submit(request(f"r{index}", max_tokens=index + 1), box.put)
        for index, box in enumerate(boxes):
            events = await collect(box)
            assert [event.token for event in events] == [1, 2, 3, 1, 2][: index + 1]
        assert len(supervisor.streams) == 0

    supervised(work)


def test_refusals_carry_their_kind():
    async def work(supervisor: Supervisor) -> None:
        first, second = Mailbox(), Mailbox()
        supervisor.submit(request("a", max_tokens=10_000, min_p=SLOW), first.put)
        supervisor.submit(request("b"), second.put)
        with pytest.raises(Overloaded):
            await collect(second)
        supervisor.cancel("a")
        supervisor.cancel("a")

    supervised(work, max_waiting=1)


def test_a_killed_agent_fails_its_requests_and_comes_back():
    async def work(supervisor: Supervisor) -> None:
        mailbox = Mailbox()
        supervisor.submit(request(max_tokens=10_000, min_p=SLOW), mailbox.put)
        await mailbox.take()
        assert supervisor.pid is not None
        first = supervisor.pid
        os.kill(first, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(AgentDied, match="restarted"):
            await collect(mailbox)
        assert time.monotonic() - started < 1
        with pytest.raises(AgentDied):
            supervisor.submit(request("early"), mailbox.put)
        await until_ready(supervisor)
        assert supervisor.pid != first
        supervisor.submit(request("again", max_tokens=1), mailbox.put)
        await collect(mailbox)
        assert supervisor.restarts == 1

    supervised(work)


def test_signals_to_the_whole_service_leave_the_agent_to_its_parent():
    async def work(supervisor: Supervisor) -> None:
        mailbox = Mailbox()
        supervisor.submit(request(max_tokens=8, min_p=SLOW), mailbox.put)
        assert supervisor.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(supervisor.pid, number)
        assert len(await collect(mailbox)) == 8
        assert (supervisor.ready, supervisor.restarts) == (True, 0)

    supervised(work)


def test_a_broken_engine_fails_all_requests_and_is_replaced():
    async def work(supervisor: Supervisor) -> None:
        slow, crash = Mailbox(), Mailbox()
        supervisor.submit(request("slow", max_tokens=10_000, min_p=SLOW), slow.put)
        supervisor.submit(request("crash", min_p=CRASH), crash.put)
        for mailbox in (slow, crash):
            with pytest.raises(AgentDied, match="broke"):
                await collect(mailbox)
        await until_ready(supervisor)

    supervised(work)


@pytest.mark.parametrize(
    ("zoo", "kind", "text"),
    [
        ("too-large", OutOfMemory, "1 of 2 models would fit"),
        ("dies", AgentDied, "status 7"),
        ("breaks", EngineError, "no such thing"),
    ],
)
def test_start_raises_the_agents_own_error(zoo: str, kind: type[Exception], text: str):
    async def work(supervisor: Supervisor) -> None:
        raise AssertionError("must not start")

    with pytest.raises(kind, match=text):
        supervised(work, zoo)


def test_an_agent_that_serves_other_chains_is_not_taken():
    async def main() -> None:
        supervisor = Supervisor(AgentOptions("other-chains"), COMMAND, chains=CHAINS)
        with pytest.raises(EngineError, match="other chains"):
            await supervisor.start()
        assert not supervisor.alive

    asyncio.run(main())


def test_what_is_left_out_is_told_at_every_start():
    told: list[Ready] = []

    async def main() -> None:
        options = AgentOptions("one-gone")
        supervisor = Supervisor(options, COMMAND, chains=CHAINS, served=told.append)
        await supervisor.start()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        while len(told) < 2:
            await asyncio.sleep(0.02)
        await supervisor.stop()

    asyncio.run(main())
    assert [ready.left_out for ready in told] == [{"b": "its weights are gone"}] * 2
    assert told[0].fingerprints == {"a": fingerprint(CHAINS["a"])}


def test_progress_while_the_agent_loads():
    async def main() -> None:
        supervisor = Supervisor(AgentOptions("slow-start"), COMMAND)
        starting = asyncio.ensure_future(supervisor.start())
        while not supervisor.progress.total:
            await asyncio.sleep(0.02)
        assert supervisor.progress == Progress("loading bytes of weights", 3, 12)
        starting.cancel()
        await asyncio.wait({starting})

    asyncio.run(main())


def test_a_restart_that_fails_says_why_to_those_who_ask(tmp_path: Path):
    async def main() -> None:
        supervisor = Supervisor(AgentOptions(f"once {tmp_path}"), COMMAND)
        await supervisor.start()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        while "again" not in supervisor.failure:
            await asyncio.sleep(0.02)
        with pytest.raises(AgentDied, match=r"no agent is ready: .*: it worked only once"):
            supervisor.submit(request(), Mailbox().put)
        await supervisor.stop()

    asyncio.run(main())


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (asyncio, "create_subprocess_exec"),
        (zmq_link.tempfile, "mkdtemp"),
        (zmq_link, "_make_socket"),
        (supervisor_module, "FrontLink"),
    ],
)
def test_restarts_outlive_errors_of_the_machine(
    owner: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
):
    async def work(supervisor: Supervisor) -> None:
        assert supervisor.pid is not None
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, refuse)
            os.kill(supervisor.pid, signal.SIGKILL)
            while "again" not in supervisor.failure:
                await asyncio.sleep(0.02)
            assert "Too many open files" in supervisor.failure
        await until_ready(supervisor)
        mailbox = Mailbox()
        supervisor.submit(request(max_tokens=1), mailbox.put)
        await collect(mailbox)

    supervised(work)


def test_an_agent_that_says_nothing_while_it_loads_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor_module, "SILENT_SECONDS", 1.5)

    async def main() -> None:
        supervisor = Supervisor(AgentOptions(f"stuck-once {tmp_path}"), COMMAND)
        await supervisor.start()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        while not (tmp_path / "stuck").exists():
            await asyncio.sleep(0.02)
        await until_ready(supervisor)
        await supervisor.stop()

    asyncio.run(main())


def test_starts_without_descriptors_leave_none_open():
    """On uvloop, whose processes leave some open when their start fails in its middle."""

    async def main() -> None:
        supervisor = Supervisor(AgentOptions(""), COMMAND)
        await supervisor.start()
        for spare in (8,):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            before = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
            try:
                assert supervisor.pid is not None
                os.kill(supervisor.pid, signal.SIGKILL)
                while "Too many open files" not in supervisor.failure:
                    await asyncio.sleep(0.02)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until_ready(supervisor)
            assert len(os.listdir("/proc/self/fd")) <= before
        await supervisor.stop()

    uvloop.run(main())


def test_a_fault_of_the_restarter_itself_is_raised(monkeypatch: pytest.MonkeyPatch):
    async def work(supervisor: Supervisor) -> None:
        monkeypatch.setattr(supervisor_module, "backoff", lambda: iter(()))
        monkeypatch.setattr(supervisor.streams, "fail_all", lambda error: 1 / 0)
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(supervisor.ended(), 5)
        monkeypatch.undo()

    supervised(work)


def test_a_stopped_agent_is_found_out_and_replaced():
    async def work(supervisor: Supervisor) -> None:
        mailbox = Mailbox()
        supervisor.submit(request(max_tokens=10_000, min_p=SLOW), mailbox.put)
        await mailbox.take()
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(AgentDied, match=r"no progress for 0\.8 s"):
            await collect(mailbox)
        assert not supervisor.ready
        await until_ready(supervisor)
        assert supervisor.pid != first and not _exists(first)
        assert supervisor.restarts == 1
        again = Mailbox()
        supervisor.submit(request("again", max_tokens=1), again.put)
        await collect(again)

    supervised(work, hang_seconds=0.8)


def test_long_turns_and_idle_times_are_no_hang():
    async def work(supervisor: Supervisor) -> None:
        mailbox = Mailbox()
        supervisor.submit(request(max_tokens=1, min_p=BUSY), mailbox.put)
        await collect(mailbox)
        await asyncio.sleep(0.7)
        assert (supervisor.ready, supervisor.restarts) == (True, 0)

    supervised(work, hang_seconds=0.5)


def test_start_can_be_given_up():
    async def main() -> None:
        supervisor = Supervisor(AgentOptions("slow-start"), COMMAND)
        starting = asyncio.ensure_future(supervisor.start())
        await asyncio.sleep(0.3)
        starting.cancel()
        started = time.monotonic()
        await asyncio.wait({starting})
        assert time.monotonic() - started < 2
        assert not supervisor.alive

    asyncio.run(main())


def test_the_agent_ends_when_its_parent_is_killed():
    program = (
        "import asyncio\n"
        "from blockllm.cluster.supervisor import Supervisor\n"
        "from blockllm.cluster.agent_main import AgentOptions\n"
        "from tests.cluster.fake_agent import COMMAND\n"
        "async def main():\n"
        "    supervisor = Supervisor(AgentOptions(''), COMMAND)\n"
        "    await supervisor.start()\n"
        "    print(supervisor.pid, supervisor._link.address, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, address = parent.stdout.readline().split()
        agent, folder = int(pid), Path(address.removeprefix("ipc://")).parent
        assert folder.is_dir()
        parent.kill()
        deadline = time.monotonic() + 5
        while _exists(agent) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _exists(agent)
        assert not folder.exists()


def _exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_backoff_doubles_up_to_half_a_minute():
    delays = [delay for delay, _ in zip(backoff(), range(12), strict=False)]
    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays[-1] == 30.0
