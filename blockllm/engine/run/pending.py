"""A turn between its sampling on the device and the host's reading of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from blockllm.engine.batch.arrays import Hop
from blockllm.engine.batch.turn import Turn
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.sampling import Draw, Sampled, draw
from blockllm.engine.sequence.sequence import Sequence

Logits = list[tuple[Hop, torch.Tensor]]  # of the members of a hop that want them


class PendingTokens(NamedTuple):
    """What a turn has sampled."""

    draws: list[tuple[Draw, list[Sequence]]]  # by vocabulary size
    sampled: torch.Tensor  # [sequences] on the device; `Sequence.sampled_at` counts them

    def collect(self) -> Iterator[tuple[Sequence, Sampled]]:
        """Wait for the tokens and tell them."""
        for drawn, sequences in self.draws:
            yield from zip(sequences, drawn.collect(), strict=True)


def overlaps(setting: str, device: torch.device) -> bool:
    """Whether a turn is launched before the tokens of the one before are known."""
    return setting == "on" or (setting == "auto" and device.type != "cpu")


def sample_rows(
    turn: Turn,
    logits: Logits,
    awaits_token: Callable[[Sequence], bool],
    kernels: Kernels,
) -> PendingTokens | None:
    """Sample for each sequence of the turn whose rows are all computed; None if there is none.
    From now on they expect a token."""
    by_vocab: dict[int, Logits] = {}
    for hop, part in logits:
        by_vocab.setdefault(part.shape[-1], []).append((hop, part))
    draws: list[tuple[Draw, list[Sequence]]] = []
    for parts in by_vocab.values():
        joined = parts[0][1] if len(parts) == 1 else torch.cat([part for _, part in parts])
        members = (h.members[turn.batch.wants_logits[h.members]].tolist() for h, _ in parts)
        sequences = [turn.sequences[i] for i in itertools.chain.from_iterable(members)]
        kept = [i for i, sequence in enumerate(sequences) if awaits_token(sequence)]
        if len(kept) < len(sequences):
            (rows,) = upload([np.array(kept, np.int64)], joined.device)
            joined, sequences = joined[rows], [sequences[i] for i in kept]
        if sequences:
            draws.append((draw(joined, sequences, kernels), sequences))
    if not draws:
        return None
    for index, sequence in enumerate(s for _, sequences in draws for s in sequences):
        sequence.expect(index)
    tokens = [drawn.tokens for drawn, _ in draws]
    return PendingTokens(draws, tokens[0] if len(tokens) == 1 else torch.cat(tokens))
