"""From logits to tokens: one call for the rows of all models."""

from blockllm.engine.sampling.draw import Draw, Sampled
from blockllm.engine.sampling.sampler import draw, sample

__all__ = ["Draw", "Sampled", "draw", "sample"]
