"""Codecs: what is decoded is near what was encoded, as near as theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockllm.offline.compress.codecs import (
    CODECS,
    codecs_for,
    coded,
    decode,
    encode,
    low_rank,
    sparse,
)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def left(difference: torch.Tensor, decoded: torch.Tensor) -> float:
    """Share of the squares that is lost."""
    return float((difference - decoded).square().sum() / difference.square().sum())


@pytest.mark.parametrize(("bits", "share"), [(1, 0.3634), (2, 0.1188), (4, 0.01154)])
def test_few_bits_lose_what_the_best_uniform_quantiser_loses(bits: int, share: float) -> None:
    """Of normally distributed values (Max, 1960), and what half a stretch costs."""
    difference = 1e-3 * random(1, 64, 4096)
    target = coded(bits, None)(difference)
    assert target.parts["codes"].shape == (64, 512 * bits)
    assert target.parts["scales"].shape == (64, 1)
    share += (share / (1 - share) / 2) ** 2 * (1 - share)
    assert left(difference, decode(target, 4096)) == pytest.approx(share, rel=0.02)


def test_one_bit_is_the_sign_and_a_size_between_short_and_full() -> None:
    """BitDelta's closed form is the mean size; sizes of full length lie as far above it again."""
    difference = random(2, 8, 64)
    decoded = decode(coded(1, None)(difference), 64)
    assert torch.equal(decoded.sign(), difference.sign())
    short = difference.abs().mean(1, keepdim=True)
    full = difference.square().mean(1, keepdim=True) / short
    expected = ((short + full) / 2).expand(8, 64)
    torch.testing.assert_close(decoded.abs(), expected, rtol=1e-3, atol=0)


def test_groups_have_scales_of_their_own() -> None:
    difference = random(3, 4, 512)
    difference[:, :128] *= 100
    whole, grouped = (decode(coded(4, group)(difference), 512) for group in (None, 128))
    assert left(difference[:, 128:], grouped[:, 128:]) < 0.02
    assert left(difference[:, 128:], whole[:, 128:]) > 0.2


def test_zeros_stay_zeros() -> None:
    difference = random(4, 6, 64)
    difference[2] = 0
    for codec, (targets, _) in encode(difference, codecs_for((6, 64), embeds=False)).items():
        decoded = torch.stack([decode(target, 64) for target in targets]).sum(0)
        assert bool(torch.isfinite(decoded).all())
        if "rank" not in codec:
            assert not decoded[2].any(), codec


def test_a_difference_of_few_directions_needs_few_ranks() -> None:
    difference = random(5, 96, 2) @ random(6, 2, 128)
    target = low_rank(difference)
    assert target.parts["a"].shape[0] <= 3
    noise = 0.001 * random(7, 96, 128)
    both = encode(difference + noise, [("rank", "sign")])[("rank", "sign")]
    assert both[1] < float(difference.square().sum())


def test_differences_in_few_places_are_kept_whole() -> None:
    difference = torch.zeros(64, 96)
    difference[3, 5], difference[60, 0], difference[3, 95] = 1.5, -2.0, 0.25
    target = sparse(difference)
    assert len(target.parts["values"]) == 3
    assert target.parts["columns"].tolist() == [5, 95, 0]
    assert torch.equal(decode(target, 96), difference)
    assert decode(sparse(torch.zeros(4, 8)), 8).count_nonzero() == 0


def test_stages_stack_and_the_error_is_what_is_left() -> None:
    difference = random(8, 32, 256)
    found = encode(difference, codecs_for((32, 256), embeds=False))
    assert set(found) == set(CODECS)
    for targets, error in found.values():
        decoded = torch.stack([decode(target, 256) for target in targets]).sum(0)
        assert float((difference - decoded).square().sum()) == pytest.approx(error, rel=1e-3)
    assert found[("int4", "int4")][1] < found[("int4",)][1] / 20
    assert found[("int4",)][1] < found[("int2",)][1] < found[("sign",)][1]
    first, second = (found[codec][0][0] for codec in (("int4",), ("int4", "int2")))
    assert np.array_equal(first.parts["codes"], second.parts["codes"])


def test_what_does_not_fill_bytes_is_not_coded() -> None:
    assert ("int4",) in codecs_for((8, 6), embeds=False)
    assert ("sign",) not in codecs_for((8, 6), embeds=False)
    assert {name for codec in codecs_for((8, 64), embeds=True) for name in codec} == {
        *("sparse", "sign", "int2", "int4")
    }
