"""What is done to the server. Each fault undoes itself but for what it killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from blockllm.zoo import Zoo
from tools.campaigns.faults.load import BackgroundLoad
from tools.campaigns.faults.system import System

FaultAction = Callable[[System, BackgroundLoad], Awaitable[None]]
KILLS_AGENT: set[str] = set()  # after these another agent has to answer
FAULTS: dict[str, FaultAction] = {}


def fault(name: str, kills_agent: bool = False) -> Callable[[FaultAction], FaultAction]:
    """Register one under a name."""

    def register(function: FaultAction) -> FaultAction:
        FAULTS[name] = function
        if kills_agent:
            KILLS_AGENT.add(name)
        return function

    return register


def _signal(process: int | None, number: int) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@fault("agent killed", kills_agent=True)
async def kill_agent(system: System, load: BackgroundLoad) -> None:
    """Without a word."""
    _signal(system.agent(), signal.SIGKILL)


@fault("agent stopped", kills_agent=True)
async def stop_agent(system: System, load: BackgroundLoad) -> None:
    """It neither computes nor ends."""
    _signal(system.agent(), signal.SIGSTOP)


@fault("agent asked to end")
async def terminate_agent(system: System, load: BackgroundLoad) -> None:
    """As a service manager that signals every process of a service."""
    _signal(system.agent(), signal.SIGTERM)


@fault("text worker killed")
async def kill_worker(system: System, load: BackgroundLoad) -> None:
    """One of those that run templates and tokenizers."""
    _signal(next(iter(system.children("blockllm.workers")), None), signal.SIGKILL)


@fault("text worker stopped")
async def stop_worker(system: System, load: BackgroundLoad) -> None:
    """It takes requests and does not answer."""
    _signal(next(iter(system.children("blockllm.workers")), None), signal.SIGSTOP)


@fault("no descriptors left")
async def use_up_descriptors(system: System, load: BackgroundLoad) -> None:
    """For a second the server can open nothing, and clients come."""
    async with _no_descriptors(system):
        await _connect(system.port, 20, 1.0)


@fault("no descriptors left, agent killed", kills_agent=True)
async def kill_without_descriptors(system: System, load: BackgroundLoad) -> None:
    """The first attempts to start another agent fail."""
    async with _no_descriptors(system):
        _signal(system.agent(), signal.SIGKILL)
        await asyncio.sleep(1.0)


@contextlib.asynccontextmanager
async def _no_descriptors(system: System):  # type: ignore[no-untyped-def]
    process = psutil.Process(system.process.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


@fault("no memory left in the agent")
async def starve_agent(system: System, load: BackgroundLoad) -> None:
    """Every allocation that needs more of the system fails, for a second."""
    agent = system.agent()
    if agent is not None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(agent)
            used = process.memory_info().vms
            process.rlimit(psutil.RLIMIT_AS, (used, resource.RLIM_INFINITY))
            await asyncio.sleep(1.0)
            process.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


@fault("temporary folder gone, agent killed", kills_agent=True)
async def kill_without_tmp(system: System, load: BackgroundLoad) -> None:
    """Another agent finds no place for its socket until the folder is back."""
    away, hidden = system.tmp.with_name("away"), list(system.tmp.iterdir())
    system.tmp.rename(away)
    _signal(system.agent(), signal.SIGKILL)
    await asyncio.sleep(1.0)
    away.rename(system.tmp)
    _remove(hidden)


@fault("disk full, agent killed", kills_agent=True)
async def kill_with_full_disk(system: System, load: BackgroundLoad) -> None:
    """The folder for sockets lies on a file system without a free byte."""
    options, hidden = (
        ("-t", "tmpfs", "-o", "size=64k", "blockllm-chaos"),
        list(system.tmp.iterdir()),
    )
    if subprocess.run(("mount", *options, str(system.tmp)), capture_output=True).returncode:
        return await kill_agent(system, load)  # only root may mount
    try:
        with contextlib.suppress(OSError), (system.tmp / "full").open("wb") as file:
            while True:
                file.write(b"x" * 4096)
        _signal(system.agent(), signal.SIGKILL)
        await asyncio.sleep(1.0)
    finally:
        subprocess.run(("umount", "--lazy", str(system.tmp)), check=True)
        _remove(hidden)


def _remove(hidden: list[Path]) -> None:
    """Folders of sockets that the server could not remove, since they were not there."""
    for folder in hidden:
        shutil.rmtree(folder, ignore_errors=True)


@fault("zoo gone, agent killed", kills_agent=True)
async def kill_without_zoo(system: System, load: BackgroundLoad) -> None:
    """The folder of the zoo has another name for a while."""
    away = system.zoo.with_name("away-zoo")
    system.zoo.rename(away)
    _signal(system.agent(), signal.SIGKILL)
    await asyncio.sleep(1.0)
    assert not system.zoo.exists(), "a server made a zoo"
    away.rename(system.zoo)


@fault("model removed from the zoo, agent killed", kills_agent=True)
async def remove_model(system: System, load: BackgroundLoad) -> None:
    """Its files go too; it comes back under its name before the next fault."""
    load.missing.add("lora")
    zoo = Zoo(system.zoo)
    zoo.remove("lora")
    zoo.gc()
    _signal(system.agent(), signal.SIGKILL)
    await asyncio.sleep(1.0)
    zoo.add("lora", system.folder / "adapter-lora", base="base")


@fault("clients that do not send, read or stay")
async def bad_clients(system: System, load: BackgroundLoad) -> None:
    """Half a request, half a body, a reset, a closed half, no reading: twenty of each."""
    await _connect(system.port, 100, 0.5)


async def _connect(port: int, count: int, seconds: float) -> None:
    opened = []
    for number in range(count):
        sender = socket.socket()
        sender.setblocking(False)
        opened.append(sender)
        with contextlib.suppress(OSError):
            sender.connect(("127.0.0.1", port))
        await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            sender.send(_BAD[number % len(_BAD)])
            if number % len(_BAD) == 3:
                sender.shutdown(socket.SHUT_WR)
    await asyncio.sleep(seconds)
    for number, sender in enumerate(opened):
        if number % 2:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.close()


_BAD = (
    b"GET /he",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{",
    b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 50,
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\0\xff\r\n\r\n",
)


@fault("server killed")
async def kill_server(system: System, load: BackgroundLoad) -> None:
    """The HTTP process; whatever it had started has to follow it."""
    children = [psutil.Process(child) for child in system.children()]
    _signal(system.process.pid, signal.SIGKILL)
    system.process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 5)
    assert not alive, f"processes outlive their server: {[p.cmdline() for p in alive]}"
    await asyncio.to_thread(system.start_again)


@fault("service asked to end and started again")
async def restart(system: System, load: BackgroundLoad) -> None:
    """SIGTERM to every process of the group, as a service manager does."""
    status = await asyncio.to_thread(system.end)
    assert status == 0, f"the server ended with status {status}"
    await asyncio.to_thread(system.start_again)
