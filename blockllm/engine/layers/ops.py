"""What a layer is: a tuple of ops over registers, built once (`build.py`).

Ops are data with their weights, and take the deltas that change these. Three interpreters run them:
`plain.py` on tensors, and behind `lower.py` the native ones over many rows and for one row. A new
op is a class here and a function in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blockllm.core import Rope, Target
from blockllm.engine.kernels.cpu.structs import Register
from blockllm.engine.layers.bottleneck import Bottlenecks
from blockllm.engine.layers.bridge import Bridge
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.embedding import Embedding
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.norm import SharedHeadNorm, SharedNorm
from blockllm.engine.layers.prefix import Prefixes
from blockllm.engine.weights.tensors import Loader


@dataclass(frozen=True, eq=False)
class Op:
    """Reads the register `source` and writes `target`."""

    source: Register
    target: Register

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take what models change here, in the order of the block's adapters; most ops have
        nothing to be changed."""


@dataclass(frozen=True, eq=False)
class LookUp(Op):
    """Each token's row of a table."""

    embedding: Embedding

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        self.embedding.attach(adapters, load)


@dataclass(frozen=True, eq=False)
class Norm(Op):
    """Root-mean-square norm of rows."""

    module: str  # what deltas call it
    norm: SharedNorm

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        self.norm.attach(_groups(self.module, adapters), load)


@dataclass(frozen=True, eq=False)
class NormHeads(Op):
    """Root-mean-square norm of some heads, in place."""

    module: str
    norm: SharedHeadNorm
    heads: int  # of queries
    kv_heads: int
    dim: int

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        self.norm.attach(_groups(self.module, adapters), load)


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """W x + b for one or several linears that read the same rows."""

    module: str  # what deltas have before the linears' names
    linear: SharedLinear

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        own = [
            {n: targets[self.module + n] for n in self.linear.columns if self.module + n in targets}
            for targets in adapters
        ]
        self.linear.attach(own, load)


@dataclass(frozen=True, eq=False)
class Write(Op):
    """Rotate queries and keys in place, then put keys and values on their pages."""

    rope: Rope
    heads: int
    kv_heads: int
    dim: int
    prefixes: Prefixes = field(default_factory=Prefixes)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        self.prefixes.attach(_groups("self_attn", adapters), load)


@dataclass(frozen=True, eq=False)
class Attend(Op):
    """Causal attention of queries over their sequences' pages."""

    heads: int
    kv_heads: int
    dim: int
    window: int | None


@dataclass(frozen=True, eq=False)
class Keep(Op):
    """Of the source and the stream, only the rows go on whose output is needed. Does something
    behind the last attention of a hop only."""

    width: int  # of the source


@dataclass(frozen=True, eq=False)
class Gate(Op):
    """activation(gate) · up, which lie side by side."""

    activation: str
    width: int  # of both


@dataclass(frozen=True, eq=False)
class Add(Op):
    """The target becomes target + source; before that, models' bottlenecks add to the source."""

    module: str  # whose output is added
    width: int
    bottlenecks: Bottlenecks = field(default_factory=Bottlenecks)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        self.bottlenecks.attach(_groups(self.module, adapters), load)


@dataclass(frozen=True, eq=False)
class AddNorm(Op):
    """`Add` and the `Norm` behind it, which GPUs do at once. Made by `plain.fuse`."""

    add: Add
    norm: Norm


@dataclass(frozen=True, eq=False)
class Cross(Op):
    """A bridge to another hidden size. No model that was trained has one: no delta changes it."""

    bridge: Bridge

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        assert not any(adapters), "a delta changes a bridge"


def _groups(module: str, adapters: Sequence[Targets]) -> list[tuple[Target, ...]]:
    return [targets.get(module, ()) for targets in adapters]
