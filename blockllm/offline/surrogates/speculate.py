"""Greedy decoding of a model with the help of a cheaper draft; the tokens are the model's own.

draft γ tokens → the model computes them in one pass → what it agrees with stays, and its own
next token is added (Leviathan et al., arXiv 2211.17192; with temperature 0 the rule is equality)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import msgspec
import torch

from blockllm.engine.build import Parts
from blockllm.offline.surrogates.decoding import Decoding


class Speculated(NamedTuple):
    """The tokens after the prompt, and how they came about."""

    tokens: list[int]
    drafted: int
    accepted: int
    judged: int  # drafted tokens that were compared: none is behind the first refused one
    verifications: int


def decode_plainly(parts: Parts, model: str, prompt: Sequence[int], count: int) -> list[int]:
    """`count` tokens by the largest logit, one pass each."""
    with closing(Decoding(parts, model, prompt, count)) as decoding:
        for _ in range(count):
            decoding.add(int(decoding.advance()[-1].argmax()))
        return decoding.tokens[len(prompt) :]


def speculate(
    parts: Parts, model: str, draft: str, prompt: Sequence[int], count: int, gamma: int
) -> Speculated:
    """`count` tokens, equal to `decode_plainly`'s; the draft proposes up to `gamma` at a time."""
    drafted = accepted = judged = verifications = 0
    with ExitStack() as stack:
        # a round may end up to `gamma` tokens behind what is wanted
        room = count + gamma + 1
        real, cheap = (
            stack.enter_context(closing(Decoding(parts, name, prompt, room)))
            for name in (model, draft)
        )
        known = len(prompt)
        while known < len(prompt) + count:
            for _ in range(gamma):
                token = int(cheap.advance()[-1].argmax())
                cheap.add(token)
                real.add(token)
            choices = real.advance()[-gamma - 1 :].argmax(-1).tolist()
            proposed = real.tokens[known:]
            agreed = num_agreed(proposed, choices)
            drafted, accepted, verifications = drafted + gamma, accepted + agreed, verifications + 1
            judged += min(agreed + 1, gamma)
            known += agreed
            for one in (real, cheap):
                one.set_back(known)
                one.add(choices[agreed])
            known += 1
        tokens = real.tokens[len(prompt) : len(prompt) + count]
    return Speculated(tokens, drafted, accepted, judged, verifications)


def num_agreed(proposed: Sequence[int], choices: Sequence[int]) -> int:
    """How many leading proposals the model would have chosen itself."""
    for index, (mine, theirs) in enumerate(zip(proposed, choices, strict=False)):
        if mine != theirs:
            return index
    return len(proposed)


class Speculation(msgspec.Struct, frozen=True):
    """What a draft is worth to a model, measured on prompts; times are medians in seconds."""

    gamma: int
    acceptance: float  # α: share of the judged proposals that were accepted
    tokens_per_verification: float
    draft_seconds: float  # one token
    step_seconds: float  # one token of the model
    verify_seconds: float  # γ + 1 tokens of the model in one pass

    def speedup(self, delay: float = 0.0) -> float:
        """Against decoding one token at a time, by these figures, if every pass of the model also
        waits `delay` seconds (as between machines) and the draft's passes do not."""
        ours = self.gamma * self.draft_seconds + self.verify_seconds + delay
        return self.tokens_per_verification * (self.step_seconds + delay) / ours

    def delay_to_pay(self) -> float:
        """The delay in seconds from which speculation is the faster; 0 if it is without any."""
        spent = self.gamma * self.draft_seconds + self.verify_seconds
        lost = spent - self.tokens_per_verification * self.step_seconds
        spared = self.tokens_per_verification - 1  # waits per round
        return max(0.0, lost / spared) if spared else math.inf


def expected_tokens(acceptance: float, gamma: int) -> float:
    """Tokens per verification if every proposal is accepted with this probability on its own:
    (1 - α^(γ+1)) / (1 - α), equation 1 of arXiv 2211.17192."""
    return sum(acceptance**k for k in range(gamma + 1))


def measure_speculation(
    parts: Parts, model: str, draft: str, prompts: Sequence[Sequence[int]], count: int, gamma: int
) -> Speculation:
    """Decode every prompt with the draft, and time the three kinds of passes."""
    runs = [speculate(parts, model, draft, prompt, count, gamma) for prompt in prompts]
    verifications = sum(run.verifications for run in runs)
    tokens = (sum(run.accepted for run in runs) + verifications) / verifications
    passes = [
        pass_seconds(parts, name, prompts[0], rows)
        for name, rows in ((draft, 1), (model, 1), (model, gamma + 1))
    ]
    return Speculation(
        gamma=gamma,
        acceptance=sum(run.accepted for run in runs) / sum(run.judged for run in runs),
        tokens_per_verification=tokens,
        draft_seconds=passes[0],
        step_seconds=passes[1],
        verify_seconds=passes[2],
    )


def pass_seconds(
    parts: Parts, model: str, prompt: Sequence[int], rows: int, repeats: int = 9
) -> float:
    """Median time to compute `rows` tokens behind the prompt."""
    with closing(Decoding(parts, model, prompt, rows)) as decoding:
        decoding.advance()
        seconds = []
        for _ in range(repeats + 1):
            for _ in range(rows):
                decoding.add(prompt[-1])
            start = time.perf_counter()
            decoding.advance()
            seconds.append(time.perf_counter() - start)
            decoding.set_back(len(prompt))
    return float(torch.tensor(seconds[1:]).median())
