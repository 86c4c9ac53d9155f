"""What happens around a long soak: the zoo changes under the server, and the agent is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tools.soak.watch import children

BACK_SECONDS = 15.0  # after a kill, refusals and broken answers are expected for so long
_CHANGE_SECONDS = 60.0


class Disturbances(NamedTuple):
    """How often what was done, and what went wrong with it."""

    kills: list[float]  # when, by the monotonic clock
    changes: list[int]  # [1] zoo changes
    problems: list[str]

    def excuses(self, started: float) -> bool:
        """Whether what began then may have met a killed agent."""
        now = time.monotonic()
        return any(started - BACK_SECONDS < kill < now for kill in self.kills)


def quiet() -> Disturbances:
    """Nothing has happened yet."""
    return Disturbances([], [0], [])


async def change_zoo(zoo: Path, model: Path, seen: Disturbances) -> None:
    """For ever: add the folder's model under a new name, remove it, collect what is left over."""
    number = 0
    while True:
        await asyncio.sleep(_CHANGE_SECONDS)
        name, number = f"throwaway-{number}", number + 1
        for words in (("add", name, str(model)), ("rm", name), ("gc",), ("verify",)):
            command = (sys.executable, "-m", "blockllm", "zoo", *words, "--zoo", str(zoo))
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output, _ = await process.communicate()
            if process.returncode:
                seen.problems.append(f"zoo {words[0]}: {output.decode(errors='replace')[:300]}")
        seen.changes[0] += 1


async def kill_agents(server: int, minutes: float, seen: Disturbances) -> None:
    """For ever: kill the agent without a word."""
    while True:
        await asyncio.sleep(60 * minutes)
        for process in children(server):
            if b"agent_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                seen.kills.append(time.monotonic())
                os.kill(process, signal.SIGKILL)
