"""What only a GPU can show: the oracle on it, real sizes, replayed against computed hops."""
# ruff: noqa: E402  (what follows the skip is costly to import)

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blockllm.core import Sampling
from blockllm.engine import Engine
from blockllm.engine import build as engine_setup
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.engine.conftest import MODELS

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from blockllm.engine.attention import make_attention
from blockllm.engine.device.transfer import Download
from blockllm.engine.kernels import gpu, plain
from blockllm.engine.kernels.triton import activation, norm
from blockllm.engine.kv.cache import KVCache, KVShape
from blockllm.engine.sampling import draw, sample
from tests.engine.test_attention import BUNDLES, make_rows
from tests.engine.test_sampling import make_sequence
from tests.oracle import test_matrix as matrix
from tests.oracle.conftest import lab, report

__all__ = ["lab", "report"]  # fixtures of the scenarios below

CUDA = torch.device("cuda")
PROMPTS = [[(i * i + 7 * j) % 96 for i in range(5 + 11 * j)] for j in range(len(MODELS))]


@pytest.fixture(autouse=True)
def scenarios_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scenarios of the oracle matrix run here as they are, on the GPU."""
    monkeypatch.setattr(matrix, "settings", lambda **values: settings(device="cuda", **values))
    assert gpu.usable(torch.empty(1, device=CUDA)), "the GPU kernels do not work here"
    yield


test_oracle_alone = matrix.test_alone
test_oracle_all_models_in_one_batch = matrix.test_all_models_in_one_batch
test_oracle_chunked_at_every_boundary = matrix.test_chunked_at_every_boundary
test_oracle_prefix_hit = matrix.test_prefix_hit
test_oracle_preempted = matrix.test_preempted
test_oracle_after_a_neighbour_was_cancelled = matrix.test_after_a_neighbour_was_cancelled


def ask(zoo: Zoo, sampling: Sampling, **values: object) -> dict[str, list[int]]:
    """One request per model, in one batch."""
    engine = Engine(zoo, None, settings(device="cuda", max_sequences=16, **values))
    asked = [request(m, m, p, sampling) for m, p in zip(MODELS, PROMPTS, strict=True)]
    return {name: answer.tokens for name, answer in run(engine, asked).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_hops_answer_as_computed_ones(
    zoo: Zoo, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = ask(zoo, greedy(64), dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setattr(engine_setup, "GraphExecutor", lambda plan, eager, *_: eager)
        assert ask(zoo, greedy(64), dtype=dtype) == replayed


def test_turns_launched_ahead_answer_as_turns_that_wait(zoo: Zoo) -> None:
    samplings = [
        greedy(48),
        Sampling(max_tokens=48, temperature=1.2, top_p=0.9, seed=3, logprobs=2),
        greedy(48, repetition_penalty=1.3, logit_bias={7: 1.0}, min_tokens=8),
    ]
    for sampling in samplings:
        ahead, waiting = (ask(zoo, sampling, overlap=how) for how in ("on", "off"))
        assert ahead == waiting


def test_sampling_waits_for_nothing_before_it_is_collected() -> None:
    options = [
        {"temperature": 0.0},
        {"temperature": 0.0, "min_tokens": 3, "repetition_penalty": 1.2},
        {"presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {3: 1.0}},
        {"top_p": 0.9, "logprobs": 2},
        {"top_k": 3, "min_p": 0.1},
    ]
    sequences = [make_sequence([1, 2], (3, 4), seed=7, **each) for each in options]
    logits = torch.randn(len(options), 5000, generator=torch.Generator().manual_seed(0))
    expected = sample(logits.clone(), sequences)
    for _ in range(2):  # the first run loads kernels and takes pinned memory
        moved = logits.to(CUDA)
        torch.cuda.set_sync_debug_mode("error")
        try:
            drawn = draw(moved, sequences)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [s.token for s in drawn.collect()] == [s.token for s in expected]


def test_a_download_arrives_behind_what_was_launched_before_it() -> None:
    x = torch.ones(4096, 4096, device=CUDA)
    for _ in range(50):
        x = (x @ x) / 4096
    coming = Download([x[0, :3], torch.empty(0, device=CUDA)])
    assert [part.tolist() for part in coming.wait()] == [[1.0, 1.0, 1.0], []]


def test_bfloat16_kernels_stay_near_plain_ones(zoo: Zoo) -> None:
    """Tokens may part in 16 bits; the first token's log-probabilities must not."""
    found = []
    for kernels in ("auto", "plain"):
        values = {"device": "cuda", "dtype": "bfloat16", "kernels": kernels}
        engine = Engine(zoo, None, settings(**values))
        asked = [request(m, m, PROMPTS[3], greedy(1, logprobs=20)) for m in MODELS]
        answers = run(engine, asked)
        found.append({m: dict(answers[m].logprobs[0].top) for m in MODELS})
    fused, twins = found
    for model in MODELS:
        common = fused[model].keys() & twins[model].keys()
        assert len(common) >= 15
        assert all(abs(fused[model][t] - twins[model][t]) < 0.1 for t in common)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "dim"), [((32, 8), 128), ((14, 2), 64), ((8, 1), 256)])
def test_attention_at_real_sizes(heads: tuple[int, int], dim: int, dtype: torch.dtype) -> None:
    width = 256
    size = (5, BUNDLES, width)
    cache = KVCache(KVShape(heads[1], dim), 1, 16, 5 * BUNDLES * width, size, CUDA, dtype)
    spans = [(4000, 1), (17, 1), (0, 700), (1500, 300), (2047, 1)]
    rows = make_rows(spans, cache)
    generator = torch.Generator(CUDA).manual_seed(0)
    cache.tensor.copy_(torch.randn(cache.tensor.shape, generator=generator, device=CUDA))
    shape = (len(rows.write_offsets), heads[0] + 2 * heads[1], dim)
    fused = torch.randn(shape, generator=generator, device=CUDA).to(dtype)
    q, k, v = fused.split([heads[0], heads[1], heads[1]], dim=1)
    kv = cache.tensor[:, 0]
    rows.write(kv, 0, k, v)
    for window in (None, 512):
        got = make_attention("triton").attend(q, k, v, kv, 0, rows, window)
        wide = (t.float() for t in (q, k, v, kv))
        expected = make_attention("plain").attend(*wide, 0, rows, window)
        tolerance = 2e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_kernels_at_real_sizes(dtype: torch.dtype) -> None:
    x, weight = torch.randn(513, 8192, device=CUDA).to(dtype), torch.randn(8192, device=CUDA)
    weight = weight.to(dtype)
    epsilon = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    close = {"rtol": epsilon, "atol": 1e-6}
    expected = plain.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-5), expected, **close)
    torch.testing.assert_close(activation.silu_multiply(x), plain.silu_multiply(x), **close)
