"""Compile every kernel for a GPU that need not be there, at the shapes of real models.

Run as a module; prints one line per compiled kernel and fails if one needs more shared memory
than the target has. `test_compiling.py` runs it, since a process either interprets or compiles.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blockllm.engine.kernels.adapter_pool import Update, make_pool
from blockllm.engine.kernels.triton import activation, lora, norm, rotate
from blockllm.engine.kernels.triton.decode import paged_decode
from blockllm.engine.kernels.triton.prefill import paged_prefill

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # per program, by capability
SIZES = ((128, 4), (256, 8))  # head size, query heads per KV head
_KINDS = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _KINDS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Compiler:
    """Stands in for the launch of a kernel: compiles it as a launch would have."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.seen: dict[tuple[Any, ...], Any] = {}

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """Called by triton in place of a launch."""
        assert not warmup and all(0 < size < 65536 for size in grid[1:]) and grid[0] > 0
        names = kernel.arg_names
        bound = dict(zip(names, args, strict=False)) | {k: options.pop(k) for k in list(options)
                                                        if k in names}  # fmt: skip
        constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr}
        signature = {n: "constexpr" if n in constants else _kind(bound[n]) for n in names}
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(names)
            if isinstance(bound[n], torch.Tensor) or (n not in constants and _by_16(bound[n]))
        }
        source = ASTSource(kernel, signature, constants, attributes)
        built = triton.compile(source, target=self.target, options=options)
        shared = built.metadata.shared
        assert shared <= SHARED_BYTES[self.target.arch], (kernel.__name__, shared, constants)
        if source.hash() not in self.seen:
            self.seen[source.hash()] = built
            sizes = " ".join(f"{v}" for v in constants.values())
            print(f"sm{self.target.arch} {kernel.__name__} [{sizes}] {shared} bytes shared")


def _by_16(value: Any) -> bool:
    return isinstance(value, int) and value % 16 == 0


def small_kernels(dtype: torch.dtype, dim: int) -> None:
    """Norms, activation, rotation."""
    x = torch.zeros(4, 4096, dtype=dtype)
    norm.rms_norm(x, x[0], 1e-5)
    norm.add_rms_norm(x, x.clone(), x[0], 1e-5)
    activation.silu_multiply(x)
    fused = torch.zeros(4, 12, dim, dtype=dtype)
    norm.rms_norm_heads(fused, 0, 8, fused[0, 0], 1e-5)
    kv = torch.zeros(2, 2, 2, 16, dim, dtype=dtype)
    where = torch.zeros(4, dtype=torch.int64)
    table = torch.zeros(4, 1, dim, dtype=dtype)
    rotate.rotate_and_write(fused, table, table, kv, where, where)


def attention(dtype: torch.dtype, dim: int, groups: int) -> None:
    """Single rows with one part and with many, and runs of rows."""
    kv = torch.zeros(2, 2, 2, 16, dim, dtype=dtype)
    index = torch.zeros(600, 256, dtype=torch.int32)
    for n in (1, 600):
        q = torch.zeros(n, 2 * groups, dim, dtype=dtype)
        paged_decode(q, kv, index, index[:, 0], index[:n, :2], None, torch.empty_like(q))
    paged_prefill(q, kv, index, index[:, :4], 5, torch.empty_like(q))


def adapters(dtype: torch.dtype, rank: int) -> None:
    """Shrink and expand of a fused linear."""
    columns = {"q": slice(0, 4096), "k": slice(4096, 5120)}
    update = Update(torch.zeros(rank, 4096, dtype=dtype), torch.zeros(rank, 4096, dtype=dtype),
                    2.0, None)  # fmt: skip
    pool = make_pool([{"q": update}], columns)
    assert pool is not None
    for rows, block in ((8, 16), (512, 64)):
        y, x = torch.zeros(rows, 5120, dtype=dtype), torch.zeros(rows, 4096, dtype=dtype)
        lora.segmented_lora(y, x, torch.zeros(8, 3, dtype=torch.int32), block, pool)


def main(capability: int, name: str) -> None:
    """Compile everything for one compute capability (80, 86, 90) and dtype (torch's name)."""
    compiler = Compiler(capability)
    triton.runtime.jit.JITFunction.run = lambda *a, **k: compiler.run(*a, **k)
    dtype = getattr(torch, name)
    small_kernels(dtype, 128)
    for dim, groups in SIZES:
        attention(dtype, dim, groups)
    adapters(dtype, 64)
    print(f"compiled {len(compiler.seen)} kernels")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
