"""The nouns of equivalence: swaps, what was measured about them, and the plan made of them.

    models → Swap (candidate) → Edge (with evidence) → SwapPlan (swaps that fit the budget together)

A swap is directed: `new` in place of `old` is not `old` in place of `new`.
"""

from __future__ import annotations

import msgspec

Mapping = dict[str, str]  # digests: layer replaced → layer that stands in for it


class Site(msgspec.Struct, frozen=True):
    """A layer of a model: 0 is the embedding, the last one the head."""

    model: str
    position: int

    def __str__(self) -> str:
        return f"{self.model}.{self.position}"


class Swap(msgspec.Struct, frozen=True):
    """Layers replaced by others, in every model that has them. More than one where layers share
    a tensor (a tied embedding and head): one without the other would save nothing.
    """

    old: tuple[str, ...]  # digests
    new: tuple[str, ...]
    old_site: Site  # of the first of them, in the first model that has it
    new_site: Site

    @property
    def mapping(self) -> Mapping:
        return dict(zip(self.old, self.new, strict=True))

    def __str__(self) -> str:
        return f"{self.new_site} for {self.old_site}"


class Similarity(msgspec.Struct, frozen=True):
    """How near the parameters of layers of one shape are."""

    cosine: float  # of all parameters as one vector
    distance: float  # |old - new| / |old|, Frobenius
    tensors: dict[str, tuple[float, float]]  # the same two by tensor


class Lens(msgspec.Struct, frozen=True):
    """How near the next-token distributions are that two layers' outputs have when their own
    models' norm and head read them: means over the same tokens."""

    cosine: float  # of probability vectors
    kl: float  # KL(old || new), nats
    agreement: float  # share of positions with the same most likely token


class Quality(msgspec.Struct, frozen=True):
    """A changed model against itself unchanged, on its own text."""

    kl: float  # mean KL(unchanged || changed) of next-token distributions, nats
    agreement: float  # share of positions with the same most likely token
    perplexity: float
    reference_perplexity: float
    num_tokens: int

    @property
    def rise(self) -> float:
        """Relative change of the perplexity."""
        return self.perplexity / self.reference_perplexity - 1


class Budget(msgspec.Struct, frozen=True):
    """The most that each changed model may lose. None is no limit."""

    max_kl: float | None = None
    max_rise: float | None = None
    min_agreement: float | None = None

    def allows(self, qualities: dict[str, Quality]) -> bool:
        """Whether every model is within every limit."""
        return all(
            (self.max_kl is None or quality.kl <= self.max_kl)
            and (self.max_rise is None or quality.rise <= self.max_rise)
            and (self.min_agreement is None or quality.agreement >= self.min_agreement)
            for quality in qualities.values()
        )


class Edge(msgspec.Struct, frozen=True):
    """A swap with all evidence about it: what is kept in the catalogue for a pair of layers."""

    swap: Swap
    weights: Similarity | None  # None: different shapes, or not floating-point
    lens: Lens | None  # None: not decoder layers
    quality: dict[str, Quality]  # swap test alone, by model that has `old`; empty: not tried
    accepted: bool  # within the budget when alone
    texts: dict[str, str]  # BLAKE3 of the text that each model was measured on


class SwapPlan(msgspec.Struct, frozen=True):
    """Swaps made together, what they save, and what each changed model loses by all of them."""

    swaps: tuple[Swap, ...]
    saved_bytes: int
    total_bytes: int  # of the models' distinct tensors before
    quality: dict[str, Quality]  # measured together, never added up

    @property
    def mapping(self) -> Mapping:
        return {old: new for swap in self.swaps for old, new in swap.mapping.items()}


class Prediction(msgspec.Struct, frozen=True):
    """How well a cheap metric ranks swaps by the KL that the swap test finds."""

    metric: str
    pairs: str  # "all" or "same position"
    rank_correlation: float  # Spearman; signed so that 1 is a perfect predictor
    num_swaps: int


class Findings(msgspec.Struct, frozen=True):
    """Everything that one search found."""

    models: dict[str, int]  # number of layers, embedding and head included
    window: int  # tokens
    num_tokens: dict[str, int]  # by model
    budget: Budget
    edges: tuple[Edge, ...]
    predictions: tuple[Prediction, ...]
    plan: SwapPlan
