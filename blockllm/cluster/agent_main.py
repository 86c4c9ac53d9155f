"""Entry of the agent process: `python -m blockllm.cluster.agent_main`, started by the supervisor.

Its first line of standard input says how to serve, the chains to serve follow it; end of input
says that the parent is gone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from blockllm.chain import decode_chains
from blockllm.cluster.agent import Loaded, run_agent
from blockllm.cluster.link import Link
from blockllm.cluster.messages import Progress
from blockllm.cluster.opening import open_engine
from blockllm.cluster.zmq_link import AgentLink, remove_folder
from blockllm.config import EngineSettings
from blockllm.core import Chain
from blockllm.observability.plain import log_plainly
from blockllm.workers.parent import wake_at_end_of_parent

REPORT_SECONDS = 0.1


class AgentOptions(msgspec.Struct, frozen=True):
    """How one agent process computes, and where its link and the packs of its chains are."""

    zoo: str
    engine: EngineSettings = EngineSettings()
    address: str = ""
    log_level: str = "info"
    chains_bytes: int = 0  # length of the encoded chains that follow


class Job(NamedTuple):
    """What an agent process has to do before it is ready, and how it reports its progress."""

    options: AgentOptions
    chains: dict[str, Chain]
    progress: Callable[[str, int, int], None]


def load_engine(job: Job) -> Loaded:
    """Load the pinned chains. Raises what open_engine raises."""
    return open_engine(job.options.zoo, job.chains, job.options.engine, job.progress)


def _end_with_parent(address: str) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    remove_folder(address)  # a parent that was killed could not
    os._exit(1)


def main(load: Callable[[Job], Loaded] = load_engine) -> int:
    """Serve until told to stop; the exit status is 0 only then."""
    source = sys.stdin.buffer
    options = msgspec.json.decode(source.readline(), type=AgentOptions)
    # Ctrl-C reaches the whole process group, and SIGTERM of a service manager the whole service;
    # the front end decides what they mean
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wake_at_end_of_parent()
    log_plainly(options.log_level, "agent")
    chains = source.read(options.chains_bytes)
    watch = threading.Thread(target=_end_with_parent, args=(options.address,), daemon=True)
    watch.start()
    try:
        link = AgentLink(options.address)
    except OSError as error:
        sys.exit(f"the agent finds no front end: {error}")

    def load_frozen() -> Loaded:
        gc.disable()  # decoding makes many objects and drops none of them
        pinned = decode_chains(chains)
        gc.enable()
        loaded = load(Job(options, pinned, Reports(link)))
        gc.collect()
        gc.freeze()  # weights and modules live as long as the process: never scan them again
        return loaded

    succeeded = run_agent(load_frozen, link)
    link.close()
    return 0 if succeeded else 1


class Reports:
    """Tells the front end how far loading is, at most every REPORT_SECONDS per activity."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._activity = ""
        self._told = 0.0

    def __call__(self, activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if activity != self._activity or now - self._told > REPORT_SECONDS:
            self._activity, self._told = activity, now
            self._link.send(Progress(activity, done, total))


if __name__ == "__main__":
    # the watching thread blocks in a read that interpreter shutdown would wait for
    status = main()
    sys.stderr.flush()
    os._exit(status)
