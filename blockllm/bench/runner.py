"""Sends a plan to its servers in a closed or an open loop, and gathers the outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec

from blockllm.bench.client import Outcome, Target, ask
from blockllm.bench.workload import Planned, Workload, plan

Targets = Mapping[str, Target]  # by model
_WARM_UP_SEED = 7_919  # added to the workload's: warming up must not fill prefix caches


class Run(msgspec.Struct):
    """One replay of a plan. `duration`: from the first request sent to the last byte, seconds;
    `client_cpu`: CPU seconds of this process meanwhile."""

    outcomes: list[Outcome]
    duration: float
    client_cpu: float


class Sender:
    """A way to send plans: targets, keys by tenant, seconds until a request is given up."""

    def __init__(
        self, targets: Targets, keys: Mapping[str, str] | None = None, timeout: float = 600.0
    ) -> None:
        self._targets, self._keys, self._timeout = targets, dict(keys or {}), timeout

    async def replay(
        self,
        planned: Sequence[Planned],
        concurrency: int = 0,
        note: Callable[[Outcome], None] | None = None,
    ) -> Run:
        """Send every request not before its time, at most `concurrency` at once (0: no limit).

        With all times 0 that is a closed loop: the next request leaves when one has ended.
        `note` is told each outcome as it comes.
        """
        slots = concurrency or len(planned)
        queue = iter(planned)
        outcomes: list[Outcome] = []
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        # one connection a request: a kept one may be closed by a server that was frozen meanwhile
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            cpu, began = time.process_time(), time.perf_counter()

            async def work() -> None:
                for request in queue:
                    await asyncio.sleep(max(0.0, began + request.at - time.perf_counter()))
                    outcome = await self._send(session, request, began)
                    outcome.lag = outcome.sent - request.at if request.at else 0.0
                    outcomes.append(outcome)
                    if note:
                        note(outcome)

            await asyncio.gather(*(work() for _ in range(min(slots, len(planned)))))
            spent = time.process_time() - cpu
        outcomes.sort(key=lambda outcome: outcome.index)
        first = min(outcome.sent for outcome in outcomes)
        last = max(outcome.sent + outcome.end for outcome in outcomes)
        return Run(outcomes, last - first, spent)

    async def _send(
        self, session: aiohttp.ClientSession, request: Planned, began: float
    ) -> Outcome:
        key = self._keys.get(request.tenant, "")
        return await ask(session, request, self._targets[request.model], key, began)

    async def warm_up(self, workload: Workload, requests: int) -> Run | None:
        """Send `requests` requests of the same kind that are not measured, models in turn."""
        if not requests:
            return None
        other = msgspec.structs.replace(
            workload,
            requests=requests,
            seed=workload.seed + _WARM_UP_SEED,
            popularity="uniform",
            rate=0.0,
            concurrency=workload.concurrency or 1,
        )
        return await self.replay(plan(other), other.concurrency)

    async def solo(self, workload: Workload, repeats: int) -> Run:
        """Each model's request alone, `repeats` times, as the measure of slowdown."""
        other = msgspec.structs.replace(
            workload,
            requests=repeats * len(workload.models),
            seed=workload.seed + 2 * _WARM_UP_SEED,
            popularity="uniform",
            rate=0.0,
            concurrency=1,
        )
        return await self.replay(plan(other), 1)
