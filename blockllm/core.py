"""The nouns: what every room passes to the next. Imports nothing heavy.

    checkpoint → Tensor, Layer → Block ─┐
    adapter    → Delta ────────────────┴→ Chain → Request → TokenEvent

Zoo makes blocks, deltas and chains; the engine serves requests over chains; all are immutable.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}


class Tensor(msgspec.Struct, frozen=True):
    """Where one tensor's bytes lie: content hash, safetensors dtype name, shape, pack, offset."""

    hash: str
    dtype: str
    shape: tuple[int, ...]
    pack: str
    offset: int

    @property
    def nbytes(self) -> int:
        count = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


class Rope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rotary embedding: base frequency and scaling, in the words of transformers 5."""

    theta: float
    kind: Literal["default", "linear", "dynamic", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


class EmbedFunction(msgspec.Struct, frozen=True, tag="embed", tag_field="kind"):
    """Token ids → hidden states."""

    vocab_size: int
    hidden_size: int


class LayerFunction(msgspec.Struct, frozen=True, tag="decoder", tag_field="kind"):
    """One decoder layer: attention and gated MLP. Biases exist where their tensors do."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    activation: str = "silu"
    window: int | None = None
    qk_norm: bool = False


class HeadFunction(msgspec.Struct, frozen=True, tag="head", tag_field="kind"):
    """Final norm and projection: hidden states → logits."""

    vocab_size: int
    hidden_size: int
    norm_eps: float


Function = EmbedFunction | LayerFunction | HeadFunction


class Layer(msgspec.Struct, frozen=True):
    """The finest cut: one function with its tensors, keyed by names relative to the layer
    (`self_attn.q_proj.weight`; `weight` for the embedding; `norm.weight`, `weight` for the head).
    """

    digest: str
    function: Function
    tensors: dict[str, Tensor]


class Block(msgspec.Struct, frozen=True):
    """A run of layers that is shared and served as one. Its id follows from its layers' digests."""

    id: str
    layers: tuple[Layer, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for layer in self.layers for t in layer.tensors.values())


class LoraTarget(msgspec.Struct, frozen=True):
    """Low-rank update of one linear (or the embedding): y += scale · B A x (+ scale · bias)."""

    a: Tensor  # [rank, in]   (embedding: [rank, vocab])
    b: Tensor  # [out, rank]  (embedding: [hidden, rank])
    scale: float
    bias: Tensor | None = None  # [out]


class Delta(msgspec.Struct, frozen=True, tag="lora", tag_field="kind"):
    """What one model adds to one block. Keys of `targets`: (layer index in block).(module), as in
    `3.self_attn.q_proj`; the embedding's and head's module is `0.embed` and `0.head`.
    """

    id: str
    targets: dict[str, LoraTarget]


class ChainEntry(msgspec.Struct, frozen=True):
    """One element of a chain: a block and what the model adds to it."""

    block: Block
    delta: Delta | None = None


class Chain(msgspec.Struct, frozen=True):
    """One servable model: embedding … layers … head, and the facts a server needs about it."""

    model: str
    entries: tuple[ChainEntry, ...]
    max_context: int
    eos_ids: tuple[int, ...] = ()
    parent: str | None = None

    @property
    def vocab_size(self) -> int:
        function = self.entries[-1].block.layers[-1].function
        assert isinstance(function, HeadFunction)
        return function.vocab_size


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen. Temperature 0 means greedy."""

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token's and the k most likely


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sequence to generate, as the engine sees it: ids only, text stays with the front end.

    `salt` separates tenants in the prefix index; `arrival` is the front end's monotonic clock.
    """

    id: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    tenant: str = ""
    salt: str = ""
    arrival: float = 0.0


class Finish(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Log-probability of the chosen token and of the most likely ones (natural logarithm)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One new token of one request, or its end. `token` is None when it ended without one."""

    request: str
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    finish: Finish | None = None
    cached_tokens: int = 0  # prompt tokens taken from the prefix index; set on the first event
    queue_seconds: float = 0.0  # from arrival to admission; set on the first event
    error: str | None = None


class Measurement(msgspec.Struct, frozen=True):
    """What a model loses against another on one text, over windows of it."""

    model: str
    reference: str
    perplexity: float
    reference_perplexity: float
    kl: float  # mean over tokens of KL(reference || model) of the next token's distribution, nats
    agreement: float  # share of positions where both find the same next token most likely
    num_tokens: int
    window: int  # tokens
    text: str  # BLAKE3 of its bytes
    created: float  # seconds since 1970
    versions: dict[str, str]  # of what measured

    @property
    def rise(self) -> float:
        """Relative change of the perplexity: 0.01 is one percent worse than the reference."""
        return self.perplexity / self.reference_perplexity - 1


class ModelCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """What listings say about one model of the zoo. `own_bytes` are used by no other model.

    `format` is "int8" or the weights' dtype; a model that is not `exact` was rounded to it.
    """

    name: str
    kind: Literal["full", "lora"]
    family: str
    parent: str | None = None
    root: str = ""
    dtype: str = ""
    format: str = ""
    exact: bool = True
    num_blocks: int = 0
    num_shared_blocks: int = 0
    total_bytes: int = 0
    own_bytes: int = 0
    shared_bytes: int = 0
    max_context: int = 0
    created: float = 0.0
    loss: tuple[Measurement, ...] = ()


class SpanStats(msgspec.Struct, frozen=True):
    """Counters of one span since the start: hops run and rows they carried."""

    name: str
    models: tuple[str, ...]
    hops: int
    rows: int


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot of one engine's books; counters only grow, `num_*` are levels."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_pages_free: int = 0
    num_pages_cached: int = 0
    num_blocks: int = 0
    weight_bytes: int = 0
    weight_bytes_unshared: int = 0
    kv_bytes: int = 0
    prompt_tokens: dict[str, int] = {}
    generation_tokens: dict[str, int] = {}
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    turns: int = 0
    max_context: dict[str, int] = {}  # longest sequence per model that the KV pool can hold
    spans: tuple[SpanStats, ...] = ()
