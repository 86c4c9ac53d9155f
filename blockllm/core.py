"""The nouns: what every room passes to the next. Imports nothing heavy.

    checkpoint → Tensor, Layer → Block ─┐
    adapter    → Delta ────────────────┴→ Chain → Request → TokenEvent

Zoo makes blocks, deltas and chains; the engine serves requests over chains; all are immutable.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "I32": 4}


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
    """One decoder layer: attention and gated MLP, or one of them. Biases exist where their tensors
    do."""

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
    part: Literal["whole", "attention", "mlp"] = "whole"


class HeadFunction(msgspec.Struct, frozen=True, tag="head", tag_field="kind"):
    """Final norm and projection: hidden states → logits."""

    vocab_size: int
    hidden_size: int
    norm_eps: float


class BridgeFunction(msgspec.Struct, frozen=True, tag="bridge", tag_field="kind"):
    """Hidden states of one size → another size: y = W(t) x + b(t), where W and b are polynomials
    in the position t and have their terms along the first dimension: `weight` [terms, output,
    input], `bias` [terms, output]. One bridge serves several cuts: each layer has its own t.
    """

    input_size: int
    output_size: int
    position: float  # t: share of the first model's layers that lie before the bridge


Function = EmbedFunction | LayerFunction | HeadFunction | BridgeFunction


def keeps_kv(function: Function) -> bool:
    """Whether a layer of this function keeps keys and values."""
    return isinstance(function, LayerFunction) and function.part != "mlp"


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


class LoraTarget(msgspec.Struct, frozen=True, tag="lora", tag_field="kind"):
    """Low-rank update of one linear (or the embedding): y += scale · B A x (+ scale · bias)."""

    a: Tensor  # [rank, in]   (embedding: [rank, vocab])
    b: Tensor  # [out, rank]  (embedding: [hidden, rank])
    scale: float
    bias: Tensor | None = None  # [out]


class DoraTarget(msgspec.Struct, frozen=True, tag="dora", tag_field="kind"):
    """Low-rank update whose rows of weights get new lengths (DoRA, arXiv 2402.09353, equation 5):
    y = m / ‖W + scale · B A‖ · (W + scale · B A) x, norms by output."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    magnitude: Tensor  # [out], m
    scale: float


class GainTarget(msgspec.Struct, frozen=True, tag="gain", tag_field="kind"):
    """A linear's input or output, bias included, times a vector (IA3, arXiv 2205.05638)."""

    gain: Tensor  # [in] or [out]
    side: Literal["input", "output"]


class BiasTarget(msgspec.Struct, frozen=True, tag="bias", tag_field="kind"):
    """A linear's bias instead of its own or of none (BitFit, arXiv 2106.10199)."""

    bias: Tensor  # [out]


class NormTarget(msgspec.Struct, frozen=True, tag="norm", tag_field="kind"):
    """A norm's weight instead of its own."""

    weight: Tensor  # [size]


class BottleneckTarget(msgspec.Struct, frozen=True, tag="bottleneck", tag_field="kind"):
    """A small MLP behind attention or MLP (Houlsby, arXiv 1902.00751; Pfeiffer, arXiv
    2005.00247): y += scale · up(activation(down(z))), where z is y, or the residual stream plus y.
    """

    down: Tensor  # [bottleneck, hidden]
    up: Tensor  # [hidden, bottleneck]
    activation: str
    reads: Literal["output", "stream"]
    scale: float = 1.0
    down_bias: Tensor | None = None  # [bottleneck]
    up_bias: Tensor | None = None  # [hidden]


class PrefixTarget(msgspec.Struct, frozen=True, tag="prefix", tag_field="kind"):
    """Keys and values that stand before every prompt (prefix tuning, arXiv 2101.00190)."""

    keys: Tensor  # [virtual tokens, kv_heads, head_dim], used as they are: not rotated
    values: Tensor  # the same


class PromptTarget(msgspec.Struct, frozen=True, tag="prompt", tag_field="kind"):
    """Hidden states that stand before every prompt's (prompt tuning, arXiv 2104.08691)."""

    rows: Tensor  # [virtual tokens, hidden]


class CodedTarget(msgspec.Struct, frozen=True, tag="coded", tag_field="kind"):
    """Difference of two weights in few bits: element [o, i] is scales[o, i // group] · (code −
    (2^bits − 1) / 2). One bit and one group are BitDelta's signs (arXiv 2402.10193)."""

    codes: Tensor  # [out, in · bits / 8] bytes, the first code of a byte in its lowest bits
    scales: Tensor  # [out, groups]
    bits: int  # 1, 2 or 4


class SparseTarget(msgspec.Struct, frozen=True, tag="sparse", tag_field="kind"):
    """Difference of two weights as its largest elements, row by row."""

    values: Tensor  # [elements]
    columns: Tensor  # [elements] int32
    ends: Tensor  # [out] int32: where each row's elements end


class RowsTarget(msgspec.Struct, frozen=True, tag="rows", tag_field="kind"):
    """Some tokens' rows of the embedding or of the head's weight instead of its own. What other
    targets add to the head is added to them too."""

    rows: Tensor  # [tokens, hidden]
    tokens: tuple[int, ...]  # whose rows they are, each once


Target = (
    LoraTarget | DoraTarget | GainTarget | BiasTarget | NormTarget | BottleneckTarget
    | PrefixTarget | PromptTarget | CodedTarget | SparseTarget | RowsTarget
)  # fmt: skip


def target_tensors(target: Target) -> dict[str, Tensor]:
    """A target's tensors by field."""
    fields = ((name, getattr(target, name)) for name in target.__struct_fields__)
    return {name: value for name, value in fields if isinstance(value, Tensor)}


class Delta(msgspec.Struct, frozen=True):
    """What one model adds to one block. Keys of `targets`: (layer index in block).(module), as in
    `3.self_attn.q_proj`; the embedding's and head's module is `0.embed` and `0.head`, a norm's is
    `3.input_layernorm`. What is listed for one module applies together.
    """

    id: str
    targets: dict[str, tuple[Target, ...]]

    def tensors(self) -> list[Tensor]:
        """Every tensor of every target."""
        targets = (target for group in self.targets.values() for target in group)
        return [tensor for target in targets for tensor in target_tensors(target).values()]


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

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of every block and delta, as often as it is named."""
        for entry in self.entries:
            for layer in entry.block.layers:
                yield from layer.tensors.values()
            if entry.delta is not None:
                yield from entry.delta.tensors()

    @property
    def vocab_size(self) -> int:
        function = self.entries[-1].block.layers[-1].function
        assert isinstance(function, HeadFunction)
        return function.vocab_size

    @property
    def num_virtual(self) -> int:
        """Virtual tokens that stand before every prompt: of a prefix or of prompt tuning."""
        sizes = [0]
        for entry in self.entries:
            for targets in entry.delta.targets.values() if entry.delta else ():
                for target in targets:
                    if isinstance(target, PrefixTarget):
                        sizes.append(target.keys.shape[0])
                    elif isinstance(target, PromptTarget):
                        sizes.append(target.rows.shape[0])
        return max(sizes)


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

    `salt` separates tenants in the prefix index; `arrival` is the front end's monotonic clock; an
    `offline` request takes only what others leave.
    """

    id: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    tenant: str = ""
    salt: str = ""
    arrival: float = 0.0
    offline: bool = False


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
    reference_perplexity: Annotated[float, msgspec.Meta(gt=0)]
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

    `kind` is "full", the kind of adapter, "compressed" (a full fine-tune kept as a lossy delta),
    or how it was assembled. `format` is "int8" or the weights' dtype; a model that is not `exact`
    computes something else than what was added. `damaged` says why a model cannot be used.
    """

    name: str
    kind: str
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
    damaged: str = ""
