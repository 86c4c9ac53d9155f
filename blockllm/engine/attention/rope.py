"""Rotary embeddings and all their scalings in use, numerically as transformers computes them.

Dynamic NTK scaling depends on the length of the text. A prompt row is rotated by the frequency
of the whole prompt's length, a generated row by that of its own position, whatever the chunking:
that is what one uninterrupted `generate` call of the reference does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from blockllm.core import Rope

_LEAST_KNOWN = 1024  # positions in a table that is kept


class RopeTable(NamedTuple):
    """Cosines and sines of some rows, both halves alike. [rows, 1, head_dim]"""

    cos: torch.Tensor
    sin: torch.Tensor
    at: torch.Tensor | None = None  # [rows] int64, where each row's are; None: in order of the rows

    def part(self, rows: slice | torch.Tensor) -> RopeTable:
        """Of some of the rows."""
        if self.at is not None:
            return self._replace(at=self.at[rows])
        return RopeTable(self.cos[rows], self.sin[rows])


class RotaryEmbedding:
    """Turns positions into tables for one (scaling, head size)."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device, dtype: torch.dtype):
        self._rope = rope
        self._head_dim = head_dim
        self._dtype = dtype
        inverse = inverse_frequencies(rope, head_dim)
        self._inverse = torch.cat((inverse, inverse)).to(device)  # [head_dim]
        self._scale = _attention_factor(rope)
        self._known: RopeTable | None = None

    def by_position(self, count: int) -> RopeTable | None:
        """Table of the positions 0 to at least `count` - 1, kept for later calls; None if not the
        position alone matters."""
        if self._rope.kind == "dynamic":
            return None
        if self._known is None or len(self._known.cos) < count:
            size = max(_LEAST_KNOWN, count + count // 4)
            positions = torch.arange(size, device=self._inverse.device)
            self._known = self.table(positions, positions)
        return self._known

    def table(self, positions: torch.Tensor, lengths: torch.Tensor) -> RopeTable:
        """Table for rows at `positions` [rows]; `lengths` [rows] matter to dynamic scaling."""
        angles = positions[:, None, None] * self._inverse  # [rows, 1, head_dim]
        if self._rope.kind == "dynamic":
            for length in sorted(set(lengths.tolist())):
                if length > self._rope.original_max_position:
                    chosen = lengths == length
                    stretched = _dynamic(self._rope, self._head_dim, length).to(angles.device)
                    both = torch.cat((stretched, stretched))
                    angles[chosen] = positions[chosen, None, None] * both
        cos, sin = angles.cos(), angles.sin()
        if self._scale != 1.0:
            cos, sin = cos * self._scale, sin * self._scale
        return RopeTable(cos.to(self._dtype), sin.to(self._dtype))


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Inverse frequencies for texts within the original length. [head_dim / 2]"""
    if rope.kind == "linear":
        return _plain(rope.theta, head_dim) / rope.factor
    if rope.kind == "yarn":
        return _yarn(rope, head_dim)
    if rope.kind == "llama3":
        return _llama3(rope, head_dim)
    return _plain(rope.theta, head_dim)


def _exponents(head_dim: int) -> torch.Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim


def _plain(theta: float | torch.Tensor, head_dim: int) -> torch.Tensor:
    inverse: torch.Tensor = 1.0 / (theta ** _exponents(head_dim))
    return inverse


def _dynamic(rope: Rope, head_dim: int, length: int) -> torch.Tensor:
    """NTK-aware scaling for a text of `length` tokens (in fp32, as the reference)."""
    stretch = rope.factor * torch.tensor(length) / rope.original_max_position - (rope.factor - 1)
    return _plain(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)


def _attention_factor(rope: Rope) -> float:
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn(rope: Rope, head_dim: int) -> torch.Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): interpolate low frequencies, keep high ones."""

    def correction(rotations: float) -> float:
        length = rope.original_max_position
        return (head_dim * math.log(length / (rotations * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low, high = correction(rope.beta_fast), correction(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    frequencies = rope.theta ** _exponents(head_dim)
    scaled: torch.Tensor = 1.0 / (rope.factor * frequencies) * (1 - keep)
    return scaled + 1.0 / frequencies * keep


def _llama3(rope: Rope, head_dim: int) -> torch.Tensor:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, the rest blended."""
    inverse, length = _plain(rope.theta, head_dim), rope.original_max_position
    low, high = rope.low_freq_factor, rope.high_freq_factor
    waves = 2 * math.pi / inverse
    smooth = (length / waves - low) / (high - low)
    stretched = torch.where(waves > length / low, inverse / rope.factor, inverse)
    blended = (1 - smooth) * stretched / rope.factor + smooth * stretched
    medium = ~(waves < length / high) & ~(waves > length / low)
    return torch.where(medium, blended, stretched)
