"""What deltas do to one linear equals the formulas of their papers, row by row, in any company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from blockllm.core import (
    BiasTarget,
    DoraTarget,
    GainTarget,
    LoraTarget,
    NormTarget,
    Target,
    Tensor,
)
from blockllm.engine.batch.arrays import Segment
from blockllm.engine.kernels.choice import ALL_CORES
from blockllm.engine.kernels.matmul import Matmul, make_matmul
from blockllm.engine.layers.changes import BaseLinear, combine
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.norm import SharedHeadNorm, SharedNorm
from blockllm.engine.layers.segments import Segments
from blockllm.errors import UnsupportedModel

IN, OUT, RANK, ROWS = 24, 40, 3, 11
CPU = torch.device("cpu")


class Store:
    """Tensors in memory, made by need."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(7)
        self._tensors: dict[str, torch.Tensor] = {}

    def keep(self, tensor: torch.Tensor) -> Tensor:
        name = str(len(self._tensors))
        self._tensors[name] = tensor
        return Tensor(name, "F32", tuple(tensor.shape), "", 0)

    def make(self, *shape: int, center: float = 0.0) -> Tensor:
        return self.keep(center + torch.randn(*shape, generator=self._generator) / 3)

    def load(self, tensor: Tensor) -> torch.Tensor:
        return self._tensors[tensor.hash]

    read = load

    def matmul(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
    ) -> Matmul:
        bias = torch.cat(
            [
                self.load(b) if b else torch.zeros(w.shape[0])
                for b, w in zip(biases, weights, strict=True)
            ]
        )
        scale = torch.cat([self.load(s) for s in scales if s]) if any(scales) else None
        return make_matmul([self.load(w) for w in weights], bias, scale, torch.float32)

    kernels = ALL_CORES

    def lora(self, scale: float = 0.5) -> LoraTarget:
        return LoraTarget(self.make(RANK, IN), self.make(OUT, RANK), scale)

    def dora(self) -> DoraTarget:
        a, b = self.make(RANK, IN), self.make(OUT, RANK)
        return DoraTarget(a, b, self.make(OUT, center=2.0), 0.7)


def expected(
    store: Store, x: torch.Tensor, base: BaseLinear, targets: Sequence[Target]
) -> torch.Tensor:
    """The formulas, with the weight as a matrix."""
    weight = store.load(base.weight).double()
    if base.scale is not None:
        weight = weight * store.load(base.scale).double()[:, None]
    bias = store.load(base.bias).double() if base.bias else torch.zeros(OUT).double()
    gain, x = torch.ones(OUT).double(), x.double()
    for target in targets:
        match target:
            case LoraTarget():
                weight = weight + target.scale * (store.load(target.b) @ store.load(target.a))
            case DoraTarget():
                weight = weight + target.scale * (store.load(target.b) @ store.load(target.a))
                length = weight.norm(dim=1, keepdim=True)
                weight = store.load(target.magnitude)[:, None] * weight / length
            case BiasTarget():
                bias = store.load(target.bias).double()
            case GainTarget(side="input"):
                x = x * store.load(target.gain)
            case GainTarget():
                gain = store.load(target.gain).double()
    return (gain * F.linear(x, weight, bias)).float()


def make_base(store: Store, has_bias: bool, is_int8: bool) -> BaseLinear:
    bias = store.make(OUT) if has_bias else None
    if not is_int8:
        return BaseLinear(store.make(OUT, IN), bias, None)
    rounded = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8)
    return BaseLinear(store.keep(rounded), bias, store.keep(torch.full((OUT,), 0.003)))


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_kind_beside_the_others(has_bias: bool, is_int8: bool) -> None:
    torch.manual_seed(3)
    store = Store()
    base = make_base(store, has_bias, is_int8)
    groups: list[tuple[Target, ...]] = [
        (store.lora(),),
        (store.dora(),),
        (GainTarget(store.make(OUT, center=1.0), "output"),),
        (GainTarget(store.make(IN, center=1.0), "input"),),
        (BiasTarget(store.make(OUT)),),
        (store.lora(), BiasTarget(store.make(OUT)), store.lora(-2.0)),
        (BiasTarget(store.make(OUT)), store.dora()),
    ]
    named = {"weight": base.weight, "bias": base.bias, "scale": base.scale}
    tensors = {f"q.{name}": tensor for name, tensor in named.items() if tensor}
    linear = SharedLinear(("q",), tensors, store)
    linear.attach([{"q": group} for group in groups], store)
    x = torch.randn(ROWS * (len(groups) + 1), IN)
    kept = x.clone()
    ids = [f"delta-{i}" for i in range(len(groups))]
    host = [Segment((i + 1) * ROWS, (i + 2) * ROWS, name) for i, name in enumerate(ids)]
    segments = Segments(host, {name: i for i, name in enumerate(ids)}, len(x), CPU)
    y = linear(x, segments)
    assert torch.equal(x, kept)
    # rows are rounded to 7 bits on their way into an int8 linear
    tolerance = 0.03 if is_int8 else 1e-5
    for i, group in enumerate([(), *groups]):
        rows = slice(i * ROWS, (i + 1) * ROWS)
        wanted = expected(store, x[rows], base, group)
        assert (y[rows] - wanted).norm() < tolerance * wanted.norm(), group


def test_kinds_whose_order_would_matter() -> None:
    store = Store()
    base = make_base(store, has_bias=True, is_int8=False)
    gain = GainTarget(store.make(OUT), "output")
    pairs: list[tuple[Target, ...]] = [
        (gain, gain),
        (gain, BiasTarget(store.make(OUT))),
        (GainTarget(store.make(IN), "input"), store.lora()),
        (store.dora(), store.lora()),
        (store.dora(), store.dora()),
        (NormTarget(store.make(OUT)),),
    ]
    for group in pairs:
        with pytest.raises(UnsupportedModel):
            combine(group, base, store)


def test_norms() -> None:
    store = Store()
    shared, own = store.make(IN, center=1.0), store.make(IN, center=1.0)
    norm = SharedNorm(store.load(shared), 1e-6)
    norm.attach([(), (NormTarget(own),)], store)
    x, added = torch.randn(3 * ROWS, IN), torch.randn(3 * ROWS, IN)
    host = [Segment(0, ROWS, "none"), Segment(ROWS, 2 * ROWS, "own")]
    segments = Segments(host, {"none": 0, "own": 1}, len(x), CPU)
    plain = F.rms_norm(x, (IN,), store.load(shared), 1e-6)
    plain[ROWS : 2 * ROWS] = F.rms_norm(x[ROWS : 2 * ROWS], (IN,), store.load(own), 1e-6)
    torch.testing.assert_close(norm(x.clone(), segments), plain)
    total, normed = norm.add(x - added, added, segments)
    torch.testing.assert_close(total, x)
    torch.testing.assert_close(normed, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModel):
        norm.attach([(NormTarget(own), NormTarget(shared))], store)


def test_head_norms() -> None:
    store, size = Store(), 8
    shared, own = store.make(size, center=1.0), store.make(size, center=1.0)
    norm = SharedHeadNorm(store.load(shared), 1e-6, 1, 2)
    norm.attach([(NormTarget(own),)], store)
    fused = torch.randn(2 * ROWS, 4, size)
    wanted = fused.clone()
    for rows, weight in ((slice(0, ROWS), shared), (slice(ROWS, None), own)):
        wanted[rows, 1:3] = F.rms_norm(fused[rows, 1:3], (size,), store.load(weight), 1e-6)
    norm(fused, Segments([Segment(ROWS, 2 * ROWS, "own")], {"own": 0}, 2 * ROWS, CPU))
    torch.testing.assert_close(fused, wanted)
