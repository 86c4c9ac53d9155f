"""What the engine promises beyond equal tokens: sharing, isolation, limits, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockllm.core import Finish, Sampling
from blockllm.engine import Engine
from blockllm.errors import (
    BadRequest,
    ConfigError,
    ContextTooLong,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    UnknownModel,
    ZooError,
)
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, least_memory, request, run, settings, step
from tests.engine.conftest import MODELS
from tests.makers import make_checkpoint

PROMPT = [(i * 37 + 11) % 96 for i in range(40)]


def solo(zoo: Zoo, model: str, sampling: Sampling, prompt: list[int] = PROMPT) -> Answer:
    engine = Engine(zoo, [model], settings(prefix_cache=False))
    return run(engine, [request("r", model, prompt, sampling)])["r"]


def test_a_shared_head_runs_once_for_rows_that_parted(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base", "upper", "other"], settings())
    run(engine, [request(m, m, PROMPT, greedy(9)) for m in ("base", "upper", "other")])
    stats = engine.stats()
    head = next(s for s in stats.spans if set(s.models) == {"base", "upper", "other"} and s.hops)
    assert len([s for s in stats.spans if len(s.models) == 3]) == 2  # lower blocks, and the head
    assert head.hops == stats.turns == 9
    private = [s for s in stats.spans if len(s.models) == 1]
    assert len(private) == 3 and all(s.hops == 9 for s in private)


def test_a_single_model_is_one_hop_per_turn(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings())
    run(engine, [request("r", "base", PROMPT, greedy(5))])
    (span,) = engine.stats().spans
    assert span.hops == engine.stats().turns == 5


def test_models_share_kv_exactly_as_far_as_their_chains_agree(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base", "upper", "lora-upper", "lora-all"], settings(page_size=4))
    run(engine, [request("b", "base", PROMPT, greedy(1))])
    cached = engine.stats().num_pages_cached
    pages_per_model = 4 * 10  # layers * full pages of 40 tokens, one layer per page
    assert cached == pages_per_model
    answers = run(engine, [request("u", "upper", PROMPT, greedy(6))])
    assert answers["u"].cached_tokens == 0  # its upper layer has to see every token
    assert answers["u"].tokens == solo(zoo, "upper", greedy(6)).tokens
    grown = engine.stats().num_pages_cached - cached
    assert grown < 4 * 12 / 2, "the three shared layers were stored again"
    answers = run(engine, [request("l", "lora-upper", PROMPT, greedy(6))])
    assert answers["l"].tokens == solo(zoo, "lora-upper", greedy(6)).tokens
    before = engine.stats().num_pages_cached
    run(engine, [request("a", "lora-all", PROMPT, greedy(1))])
    assert engine.stats().num_pages_cached - before == pages_per_model  # it shares nothing


def test_tenants_share_no_prefix(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings())
    run(engine, [request("1", "base", PROMPT, greedy(1), salt="a")])
    answers = run(
        engine,
        [
            request("2", "base", PROMPT, greedy(1), salt="b"),
            request("3", "base", PROMPT, greedy(1), salt="a"),
        ],
    )
    assert answers["2"].cached_tokens == 0
    assert answers["3"].cached_tokens == 32


def test_equal_prompts_at_once_are_computed_once(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings())
    answers = run(engine, [request(f"{i}", "base", PROMPT, greedy(8)) for i in range(4)])
    assert sorted(a.cached_tokens for a in answers.values()) == [0, 32, 32, 32]
    assert len({tuple(a.tokens) for a in answers.values()}) == 1


@pytest.mark.parametrize("model", MODELS)
def test_sampled_tokens_do_not_depend_on_the_batch(zoo: Zoo, model: str) -> None:
    sampling = Sampling(
        max_tokens=24, temperature=0.9, top_p=0.9, top_k=30, seed=5, ignore_eos=True
    )
    engine = Engine(zoo, None, settings(max_sequences=16))
    requests = [request(f"{i}", m, PROMPT[i:], sampling) for i, m in enumerate(MODELS)]
    answers = run(engine, [*requests, request("r", model, PROMPT, sampling)])
    assert answers["r"].tokens == solo(zoo, model, sampling).tokens


def test_ends(zoo: Zoo) -> None:
    free = solo(zoo, "base", greedy(12)).tokens
    stopped = solo(zoo, "base", greedy(12, stop_ids=(free[4],)))
    assert stopped.tokens == free[: free.index(free[4]) + 1]
    assert stopped.finish is Finish.STOP
    assert solo(zoo, "base", greedy(3)).finish is Finish.LENGTH
    eos = {2: 1000.0}  # the models' end-of-text id
    ended = solo(zoo, "base", Sampling(max_tokens=9, temperature=0.0, logit_bias=eos))
    assert (ended.tokens, ended.finish) == ([2], Finish.STOP)
    held = solo(zoo, "base", Sampling(max_tokens=9, temperature=0.0, logit_bias=eos, min_tokens=4))
    assert held.tokens[-1] == 2 and len(held.tokens) == 5
    ignored = solo(zoo, "base", greedy(9, logit_bias=eos))
    assert ignored.tokens == [2] * 9


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_broken_model_fails_alone_and_poisons_nobody(
    zoo: Zoo, tmp_path: Path, overlap: str
) -> None:
    broken = Zoo(tmp_path / "zoo")
    base = make_checkpoint(tmp_path / "base", seed=1)
    broken.add("base", base)
    path = make_checkpoint(tmp_path / "nan", seed=2, copy_layers_from=base, copied_layers=(0, 1, 2))
    _poison(path)
    broken.add("nan", path)
    engine = Engine(broken, None, settings(prefix_cache=False, overlap=overlap))
    answers = run(engine, [request(m, m, PROMPT, greedy(6)) for m in ("nan", "base")])
    assert answers["nan"].finish is Finish.ERROR and "not finite" in (answers["nan"].error or "")
    assert answers["base"].tokens == solo(zoo, "base", greedy(6)).tokens
    after = run(engine, [request("again", "base", PROMPT[:5], greedy(6))])["again"]
    assert after.tokens == solo(zoo, "base", greedy(6), PROMPT[:5]).tokens


def _poison(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.self_attn.v_proj.weight"].fill_(float("nan"))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_refusals_name_the_field(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings(max_waiting=1, max_context=64))
    for sampling, prompt, error, param in [
        (greedy(1), [], BadRequest, "prompt"),
        (greedy(1), [96], BadRequest, "prompt"),
        (greedy(1), [-1], BadRequest, "prompt"),
        (greedy(0), [1], BadRequest, "max_tokens"),
        (greedy(1, logit_bias={96: 1.0}), [1], BadRequest, "logit_bias"),
        (greedy(1, stop_ids=(99,)), [1], BadRequest, "stop_token_ids"),
        (greedy(60), [1] * 5, ContextTooLong, "max_tokens"),
        (greedy(1), [1] * 64, ContextTooLong, "prompt"),
    ]:
        with pytest.raises(error) as caught:
            engine.submit(request("r", "base", prompt, sampling))
        assert caught.value.param == param
    with pytest.raises(ModelNotFound):
        engine.submit(request("r", "nobody", [1], greedy(1)))
    engine.submit(request("r", "base", [1], greedy(1)))
    with pytest.raises(BadRequest):
        engine.submit(request("r", "base", [1], greedy(1)))
    with pytest.raises(Overloaded):
        engine.submit(request("s", "base", [1], greedy(1)))
    while engine.has_work:
        engine.step()


def test_a_budget_that_is_too_small_says_what_would_fit(zoo: Zoo) -> None:
    models = ["base", "upper", "lonely"]
    enough = least_memory(zoo, models)
    Engine(zoo, models, settings(memory=enough))
    said = []
    for kib in range(1, int(enough.removesuffix("KiB"))):
        with pytest.raises(OutOfMemory) as caught:
            Engine(zoo, models, settings(memory=f"{kib}KiB"))
        said.append(str(caught.value).partition("would fit: ")[2].partition(". Raise")[0])
    assert list(dict.fromkeys(said)) == ["none of them", "base", "base, upper"]


def test_a_budget_beyond_what_the_system_gives_is_named(zoo: Zoo) -> None:
    for budget in ("100000TiB", "1e9TiB"):
        with pytest.raises(OutOfMemory, match=rf"memory: {budget} leaves .* GB to KV pages"):
            Engine(zoo, ["base"], settings(memory=budget))


def test_settings_are_checked(zoo: Zoo, tmp_path: Path) -> None:
    for wrong in ({"max_rows": 1}, {"device": "tpu"}, {"memory": "much"}, {"page_size": 0}):
        with pytest.raises(ConfigError):
            Engine(zoo, ["base"], settings(**wrong))
    with pytest.raises(UnknownModel):
        Engine(zoo, ["nobody"], settings())
    with pytest.raises(ZooError, match="no zoo at"):
        Engine(Zoo(tmp_path / "absent"), None, settings())
    empty = Zoo(tmp_path / "empty")
    empty.add("model", make_checkpoint(tmp_path / "base"))
    empty.remove("model")
    with pytest.raises(UnknownModel, match="empty"):
        Engine(empty, None, settings())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_compute_dtypes_stay_close(zoo: Zoo, dtype: str) -> None:
    exact = solo(zoo, "base", greedy(1, logprobs=3)).logprobs[0]
    engine = Engine(zoo, ["base", "lora-all"], settings(dtype=dtype))
    answers = run(engine, [request("r", "base", PROMPT, greedy(1, logprobs=3))])
    near = answers["r"].logprobs[0]
    assert abs(near.chosen - exact.chosen) < 0.1
    assert {t for t, _ in near.top} & {t for t, _ in exact.top}


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_cancelling_at_every_point_balances_the_books(zoo: Zoo, overlap: str) -> None:
    engine = Engine(zoo, None, settings(max_rows=8, max_sequences=4, overlap=overlap))
    for turns in range(14):
        for i, model in enumerate(MODELS):
            engine.submit(request(f"{i}", model, PROMPT[:30], greedy(6)))
        answers: dict[str, Answer] = {}
        for _ in range(turns):
            step(engine, answers)
        for i in range(len(MODELS)):
            engine.cancel(f"{i}")
            engine.cancel(f"{i}")
        assert not engine.has_work
        engine.check_books()
        pages = engine.stats()
        assert pages.num_pages == pages.num_pages_free + pages.num_pages_cached


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_answers_as_the_cpu_does(zoo: Zoo) -> None:
    engine = Engine(zoo, None, settings(device="cuda", max_sequences=16))
    answers = run(engine, [request(m, m, PROMPT, greedy(32)) for m in MODELS])
    for model in MODELS:
        assert answers[model].tokens == solo(zoo, model, greedy(32)).tokens
