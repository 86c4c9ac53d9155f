"""An agent on a thread of this process, for `LLM`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from blockllm.cluster.agent import Loaded, run_agent
from blockllm.cluster.link import InprocLink
from blockllm.cluster.messages import (
    Cancel,
    Failed,
    FromAgent,
    Progress,
    Ready,
    Shutdown,
    Stats,
    Submit,
)
from blockllm.cluster.streams import Sink, Streams
from blockllm.core import Request
from blockllm.errors import AgentDied, BlockllmError, error_of
from blockllm.observability.stats import EngineStats


class LocalAgent:
    """Starts the loop on construction and waits until it is ready.

    Sinks are called on the agent's thread. Raises whatever loading the engine raised.
    """

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self.left_out: Mapping[str, str] = {}  # by model, why it is not served
        self.stats = EngineStats()
        self._streams = Streams()
        self._failure: BlockllmError | None = None
        self._settled = threading.Event()  # ready or failed
        self._link = InprocLink(self._deliver)
        self._thread = threading.Thread(
            target=run_agent, args=(load, self._link), name="agent", daemon=True
        )
        self._thread.start()
        self._settled.wait()
        self._raise_if_dead()

    def submit(self, request: Request, sink: Sink) -> None:
        """Generate; events go to `sink`. Raises AgentDied when the engine has broken."""
        self._streams.open(request.id, sink)
        self._raise_if_dead()  # after opening: a failure in between reaches the sink or us
        self._link.post(Submit(request))

    def cancel(self, request_id: str) -> None:
        """Forget a request; idempotent."""
        if self._streams.close(request_id):
            self._link.post(Cancel(request_id))

    def close(self) -> None:
        """End the loop; requests in flight fail with AgentDied."""
        self._link.post(Shutdown())
        self._thread.join()
        self._failure = self._failure or AgentDied("the LLM is closed")
        self._streams.fail_all(self._failure)

    def _raise_if_dead(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _deliver(self, message: FromAgent) -> None:
        match message:
            case Ready(stats=stats, left_out=left_out):
                self.stats, self.left_out = stats, left_out
                self._settled.set()
            case Stats(stats=stats):
                self.stats = stats
            case Failed(kind=kind, message=text):
                self._failure = error_of(kind, text)
                self._settled.set()
                self._streams.fail_all(self._failure)
            case Progress():
                pass
            case _:
                self._streams.deliver(message)
