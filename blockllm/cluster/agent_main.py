"""Entry of the agent process: `python -m blockllm.cluster.agent_main`, started by the supervisor.

Its first line of standard input says what to serve; end of input says that the parent is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from blockllm.cluster.agent import EnginePort, run_agent
from blockllm.cluster.zmq_link import AgentLink, remove_folder
from blockllm.config import EngineSettings

logger = logging.getLogger(__name__)


class AgentOptions(msgspec.Struct, frozen=True):
    """What one agent process is to serve, and where its link is."""

    zoo: str
    models: tuple[str, ...] | None = None
    engine: EngineSettings = EngineSettings()
    address: str = ""
    log_level: str = "info"


def open_engine(options: AgentOptions) -> EnginePort:
    """Load the models of the zoo. Raises OutOfMemory, UnknownModel."""
    from blockllm.engine import Engine
    from blockllm.zoo import Zoo

    started = time.monotonic()
    engine = Engine(Zoo(options.zoo), options.models, options.engine)
    seconds, size = time.monotonic() - started, engine.stats().weight_bytes
    text = "loaded %.1f MB of weights in %.2f s (%.2f GB/s)"
    logger.info(text, size / 1e6, seconds, size / 1e9 / seconds)
    return engine


def _end_with_parent(address: str) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    remove_folder(address)  # a parent that was killed could not
    os._exit(1)


def main(make_engine: Callable[[AgentOptions], EnginePort] = open_engine) -> int:
    """Serve until told to stop; the exit status is 0 only then."""
    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=AgentOptions)
    # Ctrl-C reaches the whole process group; the front end decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = threading.Thread(target=_end_with_parent, args=(options.address,), daemon=True)
    watch.start()
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s agent %(levelname)s %(message)s"
    )

    def load() -> EnginePort:
        engine = make_engine(options)
        gc.collect()
        gc.freeze()  # weights and modules live as long as the process: never scan them again
        return engine

    link = AgentLink(options.address)
    succeeded = run_agent(load, link)
    link.close()
    return 0 if succeeded else 1


if __name__ == "__main__":
    # the watching thread blocks in a read that interpreter shutdown would wait for
    status = main()
    sys.stderr.flush()
    os._exit(status)
