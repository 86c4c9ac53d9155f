"""From chains to routes: the spans, and which of them each model visits. Pure."""

from blockllm.chain.cut import one_block_per_layer
from blockllm.chain.pinned import decode_chains, encode_chains, fingerprint, fingerprints
from blockllm.chain.spans import Route, Span, SpanPlan, Stop, plan_spans

__all__ = [
    "Route",
    "Span",
    "SpanPlan",
    "Stop",
    "decode_chains",
    "encode_chains",
    "fingerprint",
    "fingerprints",
    "one_block_per_layer",
    "plan_spans",
]
