"""The plain twins: small functions of torch operators, for every device and dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_EXACT_INPUTS = 2**24 // (63 * 128) // 64 * 64  # of rounded rows times int8 weights, see below


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. [rows, 2 * size] → [rows, size]"""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [rows, heads, dim]; cos, sin: [rows, 1, dim], both halves alike."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def write(
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    pages: torch.Tensor,  # [rows] int64
    offsets: torch.Tensor,  # [rows] int64
    k: torch.Tensor,  # [rows, kv_heads, dim]
    v: torch.Tensor,
) -> None:
    """Put rows' keys and values on their pages."""
    keys, values = kv.transpose(2, 3).unbind(1)  # [pages, page_size, kv_heads, dim]
    keys.index_put_((pages, offsets), k)
    values.index_put_((pages, offsets), v)


def int8_linear(
    x: torch.Tensor,  # [rows, in]
    weight: torch.Tensor,  # [out, in] int8
    scale: torch.Tensor,  # [out] fp32
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x (weight · scale)ᵀ + bias, each row of x rounded to -63 ... 63 by its own largest value.
    The sums are exact, so a row's bits do not depend on its neighbours. [rows, out]"""
    wide = x.float()
    most = wide.abs().amax(-1, keepdim=True)  # [rows, 1]
    codes = torch.round(wide * torch.where(most > 0, 63.0 / most, 0.0)).nan_to_num(0.0)
    y = _exact_product(codes, weight) * (most / 63.0) * scale
    return (y if bias is None else y + bias).to(x.dtype)


def pack(weight: torch.Tensor, group: int, panel: int) -> torch.Tensor:
    """[out, in] → [panels, in / group, panel, group], zeros behind the last output and input."""
    out, size = weight.shape
    padded = F.pad(weight, (0, -size % group, 0, -out % panel))
    return padded.view(-1, panel, padded.shape[1] // group, group).transpose(1, 2).contiguous()


def int8_offsets(weight: torch.Tensor) -> torch.Tensor:
    """What the sums of rounded rows times int8 weights [out, in] have too much: the rounding stores
    rows around 64. [out] int32"""
    return 64 * weight.sum(1, dtype=torch.int32)


def _exact_product(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """codes [rows, in] @ weightᵀ [in, out] → fp32; both hold small integers."""
    if codes.device.type == "cuda" and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0:
        rows = max(32, -(-len(codes) // 8) * 8)  # what the GPU's integer product takes
        padded = F.pad(codes.to(torch.int8), (0, 0, 0, rows - len(codes)))
        return torch._int_mm(padded, weight.t())[: len(codes)].float()
    # sums of whole numbers below 2^24 are exact in fp32, whatever their order
    firsts = range(0, codes.shape[1], _EXACT_INPUTS)
    parts = [slice(first, first + _EXACT_INPUTS) for first in firsts]
    sums = [F.linear(codes[:, part], weight[:, part].to(codes.dtype)) for part in parts]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0, dtype=torch.float64).float()
