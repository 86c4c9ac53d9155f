"""Execution on one device: rows in, tokens out."""

import os

# Read by torch's OpenMP when it is loaded, hence before any import of torch: idle threads give
# their core back after about 0.1 ms instead of spinning against other processes.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from blockllm.engine.build import prepare
from blockllm.engine.loop import Engine

__all__ = ["Engine", "prepare"]
