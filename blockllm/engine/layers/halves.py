"""The two halves of a decoder layer; weights are shared by every model of the block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from blockllm.core import BottleneckTarget, Layer, LayerFunction, PrefixTarget
from blockllm.engine.kernels.cpu.layer import Matrix
from blockllm.engine.kernels.fused import silu_multiply
from blockllm.engine.layers.activations import ACTIVATIONS
from blockllm.engine.layers.bottleneck import Bottlenecks
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.linear import Linear
from blockllm.engine.layers.norm import HeadNorm, Norm
from blockllm.engine.layers.prefix import Prefixes
from blockllm.engine.layers.segments import Kept, Segments
from blockllm.engine.weights.tensors import Loader

# q, k, v of all rows [rows, heads + 2 kv_heads, head_dim], not yet rotated, and the window →
# attention output [rows, heads, head_dim]
Attend = Callable[[torch.Tensor, int | None], torch.Tensor]


class AttentionHalf:
    """Norm, attention and output projection, without the residual."""

    def __init__(self, layer: Layer, function: LayerFunction, load: Loader) -> None:
        self._function = function
        # linears of one input are fused into one; their output's columns are in this order
        self._qkv = _linear("self_attn", ("q_proj", "k_proj", "v_proj"), layer, load)
        self._o = _linear("self_attn", ("o_proj",), layer, load)
        self._norm = _norm("input_layernorm", layer, function, load)
        self._head_norms = _head_norms(layer, function, load)
        self._bottlenecks: Bottlenecks | None = None
        self._prefixes: Prefixes | None = None

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `self_attn.q_proj`."""
        _attach_linears((self._qkv, self._o), "self_attn", adapters, load)
        for name, norm in self._head_norms.items():
            norm.attach([targets.get(name, ()) for targets in adapters], load)
        self._norm.attach([targets.get("input_layernorm", ()) for targets in adapters], load)
        self._bottlenecks = _bottlenecks("self_attn", adapters, load)
        prefixes = [
            [t for t in targets.get("self_attn", ()) if isinstance(t, PrefixTarget)]
            for targets in adapters
        ]
        if any(prefixes):
            self._prefixes = Prefixes(prefixes, load)

    def describe(self) -> tuple[list[Matrix | None], list[torch.Tensor | None]]:
        """Matrices and norms as a fused layer takes them."""
        heads = [norm.weight for norm in self._head_norms.values()]
        norms = [self._norm.weight, *(heads or (None, None))]
        return [self._qkv.describe(), self._o.describe()], norms

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        segments: Segments,
        attend: Attend,
        kept: Kept | None = None,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or kept, hidden]; keys and values of all rows land on their
        pages."""
        function, rows = self._function, len(x)
        heads, kv_heads, size = function.num_heads, function.num_kv_heads, function.head_dim
        normed = self._norm(x, segments)
        fused = self._qkv(normed, segments).view(rows, heads + 2 * kv_heads, size)
        for norm in self._head_norms.values():
            norm(fused, segments)
        if self._prefixes is not None:
            self._prefixes.put(fused, segments)
        out = attend(fused, function.window)  # [rows, heads, head_dim]
        if kept is not None:
            out, x, segments = out[kept.rows], x[kept.rows], kept.segments
        attended = self._o(out.reshape(len(out), heads * size), segments)
        if self._bottlenecks is not None:
            self._bottlenecks.add_to(attended, x, segments)
        return attended


class MlpHalf:
    """Norm and gated MLP, with the residual."""

    def __init__(self, layer: Layer, function: LayerFunction, load: Loader) -> None:
        self._function = function
        self._gate_up = _linear("mlp", ("gate_proj", "up_proj"), layer, load)
        self._down = _linear("mlp", ("down_proj",), layer, load)
        self._norm = _norm("post_attention_layernorm", layer, function, load)
        self._bottlenecks: Bottlenecks | None = None

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `mlp.up_proj`."""
        _attach_linears((self._gate_up, self._down), "mlp", adapters, load)
        norms = [targets.get("post_attention_layernorm", ()) for targets in adapters]
        self._norm.attach(norms, load)
        self._bottlenecks = _bottlenecks("mlp", adapters, load)

    def describe(self) -> tuple[list[Matrix | None], list[torch.Tensor | None]]:
        """Matrices and norm as a fused layer takes them; it knows no activation but one."""
        if self._function.activation != "silu":
            return [None], [self._norm.weight]
        return [self._gate_up.describe(), self._down.describe()], [self._norm.weight]

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]"""
        return self._run(x, self._norm(x, segments), segments)

    def after(self, x: torch.Tensor, attended: torch.Tensor, segments: Segments) -> torch.Tensor:
        """As a call on x + attended, which is added on the way. All [rows, hidden]"""
        return self._run(*self._norm.add(x, attended, segments), segments)

    def _run(self, x: torch.Tensor, normed: torch.Tensor, segments: Segments) -> torch.Tensor:
        out = self._down(self._activate(self._gate_up(normed, segments), segments), segments)
        if self._bottlenecks is not None:
            self._bottlenecks.add_to(out, x, segments)
        return x + out

    def _activate(self, gate_up: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, 2 * intermediate] → [rows, intermediate]"""
        if self._function.activation == "silu":
            return silu_multiply(gate_up, segments.kernels)
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[self._function.activation](gate) * up


def _linear(module: str, names: tuple[str, ...], layer: Layer, load: Loader) -> Linear:
    tensors = {
        f"{name}.{kind}": layer.tensors[f"{module}.{name}.{kind}"]
        for name in names
        for kind in ("weight", "bias", "scale")
        if f"{module}.{name}.{kind}" in layer.tensors
    }
    return Linear(names, tensors, load)


def _norm(name: str, layer: Layer, function: LayerFunction, load: Loader) -> Norm:
    return Norm(load.load(layer.tensors[f"{name}.weight"]), function.norm_eps)


def _head_norms(layer: Layer, function: LayerFunction, load: Loader) -> dict[str, HeadNorm]:
    if not function.qk_norm:
        return {}
    heads, kv_heads, eps = function.num_heads, function.num_kv_heads, function.norm_eps
    q, k = (load.load(layer.tensors[f"self_attn.{x}_norm.weight"]) for x in "qk")
    return {
        "self_attn.q_norm": HeadNorm(q, eps, 0, heads),
        "self_attn.k_norm": HeadNorm(k, eps, heads, kv_heads),
    }


def _attach_linears(
    linears: Sequence[Linear], module: str, adapters: Sequence[Targets], load: Loader
) -> None:
    prefix = f"{module}."
    for linear in linears:
        own = [
            {n: targets[prefix + n] for n in linear.columns if prefix + n in targets}
            for targets in adapters
        ]
        linear.attach(own, load)


def _bottlenecks(place: str, adapters: Sequence[Targets], load: Loader) -> Bottlenecks | None:
    own = [
        [t for t in targets.get(place, ()) if isinstance(t, BottleneckTarget)]
        for targets in adapters
    ]
    return Bottlenecks(own, load) if any(own) else None
