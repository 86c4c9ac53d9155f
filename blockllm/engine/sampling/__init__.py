"""From logits to tokens: one call for the rows of all models."""

from blockllm.engine.sampling.sampler import Sampled, sample

__all__ = ["Sampled", "sample"]
