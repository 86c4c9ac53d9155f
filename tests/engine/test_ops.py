"""Every op gives the same bits in all three interpreters."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from blockllm.core import LoraTarget, Rope
from blockllm.engine.batch.arrays import Segment
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.cpu import native, structs
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.engine.kernels.cpu.program import NO_KV, NativeProgram, OutputArrays
from blockllm.engine.kernels.cpu.structs import KVAccess, NativeOp, OpCode, Register
from blockllm.engine.kernels.fused import rotate_and_write
from blockllm.engine.layers import lower, ops, plain
from blockllm.engine.layers.embedding import Embedding
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.lower import lower as lower_ops
from blockllm.engine.layers.norm import SharedHeadNorm, SharedNorm
from blockllm.engine.layers.plain import PlainRun
from blockllm.engine.layers.segments import OutputRows, Segments
from blockllm.errors import EngineError
from tests.engine.test_changes import Store

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")

VOCAB, HIDDEN, HEADS, KV_HEADS, DIM, INNER, ROWS, PAGE = 11, 40, 4, 2, 6, 36, 5, 4
SIZES = (HEADS, KV_HEADS, DIM)
CPU = torch.device("cpu")
STREAM, NORMED, WIDE = Register.STREAM, Register.NORMED, Register.WIDE
ATTENDED, OUTPUT = Register.INNER, Register.OUTPUT


class Pages:
    """Two pages of each row's sequence, the first of them full, and how the row is rotated."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.kv = torch.randn(2 * ROWS, 2, KV_HEADS, PAGE, DIM, generator=generator)
        self.cos = torch.randn(ROWS, 1, DIM // 2, generator=generator).repeat(1, 1, 2)
        self.sin = torch.randn(ROWS, 1, DIM // 2, generator=generator).repeat(1, 1, 2)
        self.tables = torch.arange(2 * ROWS, dtype=torch.int32).view(ROWS, 2)
        self.write_pages = self.tables[:, 1].long()
        self.write_offsets = torch.arange(ROWS) % PAGE
        self.contexts = PAGE + self.write_offsets + 1

    def write(self, fused: torch.Tensor) -> None:
        where = (self.write_pages, self.write_offsets, Kernels(2))
        rotate_and_write(fused, self.cos, self.sin, self.kv, *where)

    def attend(self, fused: torch.Tensor, window: int | None) -> torch.Tensor:
        own = (self.kv, self.tables, self.contexts, window, 2)
        return native.paged_decode(fused[:, :HEADS], *own)

    def access(self, row: int | None = None) -> KVAccess:
        """For native programs: of all rows, or of one."""
        first, rows = (0, ROWS) if row is None else (row, 1)
        of_rows = (self.write_pages, self.write_offsets, self.tables, self.contexts)
        pages, offsets, tables, contexts = (each[first:].data_ptr() for each in of_rows)
        cos, sin = self.cos[first:].data_ptr(), self.sin[first:].data_ptr()
        strides = (self.kv.stride(0), 0, self.kv.stride(1), 1)
        found = (cos, sin, 0, pages, 0, offsets, tables, 1, 2)
        return KVAccess(self.kv.data_ptr(), PAGE, *strides, *found, 0, 0, 0, 0, contexts, rows)


def all_ops(store: Store) -> tuple[ops.Op, ...]:
    """A layer in which every op occurs that has a native form; the last sum is one of its own."""

    def linear(name: str, outputs: int, inputs: int) -> SharedLinear:
        tensors = {f"{name}.weight": store.make(outputs, inputs)}
        shared = SharedLinear((name,), tensors, store)
        lora = LoraTarget(store.make(2, inputs), store.make(outputs, 2), 0.5)
        shared.attach([{name: (lora,)}], store)
        return shared

    def norm(size: int) -> torch.Tensor:
        return store.load(store.make(size, center=1.0))

    width = (HEADS + 2 * KV_HEADS) * DIM
    heads = SharedHeadNorm(norm(DIM), 1e-6, 0, HEADS)
    kv_heads = SharedHeadNorm(norm(DIM), 1e-6, HEADS, KV_HEADS)
    table = Embedding(store.load(store.make(VOCAB, HIDDEN)), torch.float32)
    return (
        ops.LookUp(Register.TOKENS, STREAM, table),
        ops.Norm(STREAM, NORMED, "before", SharedNorm(norm(HIDDEN), 1e-6)),
        ops.Linear(NORMED, WIDE, "", linear("qkv", width, HIDDEN)),
        ops.NormHeads(WIDE, WIDE, "q", heads, *SIZES),
        ops.NormHeads(WIDE, WIDE, "k", kv_heads, *SIZES),
        ops.Write(WIDE, WIDE, Rope(1e4), *SIZES),
        ops.Attend(WIDE, ATTENDED, *SIZES, window=6),
        ops.Keep(ATTENDED, ATTENDED, HEADS * DIM),
        ops.Linear(ATTENDED, OUTPUT, "", linear("o", HIDDEN, HEADS * DIM)),
        ops.Add(OUTPUT, STREAM, "attention", HIDDEN),
        ops.Norm(STREAM, NORMED, "behind", SharedNorm(norm(HIDDEN), 1e-6)),
        ops.Linear(NORMED, WIDE, "", linear("gate_up", 2 * INNER, HIDDEN)),
        ops.Gate(WIDE, ATTENDED, "silu", 2 * INNER),
        ops.Linear(ATTENDED, OUTPUT, "", linear("down", HIDDEN, INNER)),
        ops.Norm(OUTPUT, NORMED, "sandwich", SharedNorm(norm(HIDDEN), 1e-6)),
        ops.Add(NORMED, STREAM, "mlp", HIDDEN),
        # reads what it is added to
        ops.Norm(STREAM, NORMED, "next", SharedNorm(norm(HIDDEN), 1e-6)),
        ops.Linear(NORMED, WIDE, "", linear("other_gate_up", 2 * INNER, HIDDEN)),
        ops.Gate(WIDE, ATTENDED, "relu", 2 * INNER),
        ops.Linear(NORMED, OUTPUT, "", linear("parallel", HIDDEN, HIDDEN)),
        ops.Add(OUTPUT, STREAM, "parallel", HIDDEN),
    )


COUNT = 21
TOKENS = torch.tensor([3, 0, 10, 3, 7])


def run_plain(
    some: tuple[ops.Op, ...], segments: Segments, output: OutputRows | None = None
) -> torch.Tensor:
    pages: Any = Pages()
    run = PlainRun(TOKENS, segments, lambda write, kv_layer: pages, 0, output)
    run.run(some)
    return run.values[some[-1].target]


def program_of(some: tuple[ops.Op, ...]) -> NativeProgram:
    layer = lower_ops(some)
    assert layer is not None
    return NativeProgram([layer], some[-1].target)


@pytest.mark.parametrize("count", range(1, COUNT + 1))
def test_interpreters_agree_behind_every_op(count: int) -> None:
    some = all_ops(Store())[:count]
    bare = Segments((), {}, ROWS, CPU, kernels=Kernels(3))
    wanted, program = run_plain(some, bare), program_of(some)
    pages = Pages()
    assert torch.equal(program(TOKENS, pages.access(), 0, None, 3), wanted)
    if some[-1].target is not NORMED:  # of one row each thread has its own
        alone = [program(TOKENS[i : i + 1], pages.access(i), 0, None, 3) for i in range(ROWS)]
        assert torch.equal(torch.cat(alone), wanted)


def test_interpreters_agree_with_deltas_and_on_the_rows_that_go_on() -> None:
    every = all_ops(Store())
    assert len(every) == COUNT
    segments = Segments([Segment(1, 4, "lora")], {"lora": 0}, ROWS, CPU, kernels=Kernels(2))
    output = OutputRows(torch.tensor([0, 2, 3]).numpy(), torch.tensor([0, 2, 3]))
    wanted = run_plain(every, segments, output)
    assert not torch.equal(wanted, run_plain(every, segments.select(output.host[:0]), output))
    arrays = OutputArrays(output.rows, segments.select(output.host).tiles)
    pages = Pages()
    found = program_of(every)(TOKENS, pages.access(), 0, segments.tiles, 2, arrays)
    assert len(found) == 3 and torch.equal(found, wanted)


def test_a_sum_and_the_norm_of_it_are_one_op_with_the_same_bits() -> None:
    every, segments = all_ops(Store()), Segments((), {}, ROWS, CPU)
    fused = tuple(plain.fuse(every))
    assert sum(isinstance(op, ops.AddNorm) for op in fused) == 2
    assert torch.equal(run_plain(fused, segments), run_plain(every, segments))


def test_every_op_is_known_to_every_interpreter() -> None:
    known = set(ops.Op.__subclasses__())
    assert set(plain._FUNCTIONS) == known
    assert set(lower._FUNCTIONS) == known - {ops.AddNorm, ops.Cross}
    assert {type(op) for op in all_ops(Store())} == set(lower._FUNCTIONS)
    codes: set[int] = set()
    for function, op in ((lower._FUNCTIONS[type(op)], op) for op in all_ops(Store())):
        made = function(op)
        assert made is not None
        codes.add(made.code)
    assert codes == set(OpCode)


def test_an_op_without_a_native_form_makes_its_layer_plain() -> None:
    gate = ops.Gate(WIDE, ATTENDED, "gelu", 2 * INNER)
    assert lower_ops([*all_ops(Store()), gate]) is None


def test_the_header_is_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.library()
    structs.check_layouts(library)
    fields = structs.TABLE["Matrix"]
    monkeypatch.setitem(structs.TABLE, "Matrix", (fields[1], fields[0], *fields[2:]))
    with pytest.raises(EngineError, match=r"structs\.h is not .*write_header"):
        structs.check_layouts(library)


def test_a_struct_that_the_compiler_lays_out_differently_is_refused() -> None:
    class Narrow(ctypes.Structure):
        _fields_ = (*NativeOp._fields_[:-2], ("window", ctypes.c_int32), ("scale", ctypes.c_float))

    others = (structs.Matrix, Narrow, *structs.STRUCTS[2:])
    with pytest.raises(EngineError, match="lay struct Narrow out as"):
        structs.check_layouts(native.library(), others)


def test_a_program_without_attention_needs_no_pages() -> None:
    some = all_ops(Store())[:3]
    assert program_of(some)(TOKENS, NO_KV, 0, None, 2).shape == (ROWS, 48)
