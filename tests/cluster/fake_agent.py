"""The agent process with a fake engine; the name of the zoo says how it starts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from blockllm.chain import fingerprints
from blockllm.cluster.agent import Loaded
from blockllm.cluster.agent_main import Job, main
from blockllm.errors import OutOfMemory
from tests.cluster.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    "from tests.cluster.fake_agent import run; run()",
)


def load(job: Job) -> Loaded:
    word, _, place = job.options.zoo.partition(" ")
    match word:
        case "once" if (Path(place) / "started").exists():
            raise OutOfMemory("it worked only once")
        case "once":
            (Path(place) / "started").touch()
        case "stuck-once" if not (Path(place) / "started").exists():
            (Path(place) / "started").touch()
        case "stuck-once" if not (Path(place) / "stuck").exists():
            (Path(place) / "stuck").touch()
            time.sleep(600)
        case "too-large":
            raise OutOfMemory("weights need 9 GB, 1 GB is allowed; 1 of 2 models would fit")
        case "dies":
            os._exit(7)
        case "breaks":
            raise ValueError("no such thing")
        case "slow-start":
            job.progress("loading bytes of weights", 3, 12)
            time.sleep(60)
        case "other-chains":
            return Loaded(FakeEngine(), {"base": "fp_of-something-else"})
        case "one-gone":
            reasons = {"b": "its weights are gone"}
            served = {name: job.chains[name] for name in job.chains if name not in reasons}
            return Loaded(FakeEngine(), fingerprints(served), reasons)
    engine = FakeEngine(max_requests=job.options.engine.max_waiting)
    return Loaded(engine, fingerprints(job.chains))


def run() -> None:
    status = main(load)
    sys.stderr.flush()
    os._exit(status)
