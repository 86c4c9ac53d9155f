"""Full fine-tunes as compressed deltas: chosen, measured, gated, and served like merged weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from blockllm.core import CodedTarget, NormTarget, target_tensors
from blockllm.engine import Engine
from blockllm.engine.score import Scorer
from blockllm.engine.weights.loader import TensorLoader
from blockllm.errors import NameTaken, ZooError
from blockllm.offline.compress.choose import Mix
from blockllm.offline.compress.codecs import decode
from blockllm.offline.compress.compress import CompressOptions, compress
from blockllm.offline.compress.compressor import Compressor
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import NewLayer, NewTarget
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint

TEXT = bytes(range(32, 127)) * 12
EXACT = 1e-6  # KL that only the finest codecs keep below


def tune(base: Path, path: Path, seed: int, size: float = 0.02) -> Path:
    """A full fine-tune: every tensor of the checkpoint plus noise."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    for file in base.glob("*token*"):
        shutil.copy(file, path)
    return path


def make_folders(folder: Path, family: str) -> Path:
    """`base`, tied for one family, and two fine-tunes of it, `a` and `b`."""
    tied = family == "llama"
    base = make_checkpoint(
        folder / "base", family, tokenizer=True, vocab_size=320, tie_word_embeddings=tied
    )
    for seed, name in enumerate("ab"):
        tune(base, folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def zoo(folders: Path, tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", folders / "base")
    return zoo


def files(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for p in folder.rglob("*.*") if p.is_file()}


def test_a_fine_tune_is_added_as_a_delta_with_its_loss(zoo: Zoo, folders: Path) -> None:
    base = zoo.card("base")
    made = compress(
        zoo, "a", folders / "a", "base", TEXT, CompressOptions(max_bytes=0.25, window=64)
    )
    card = zoo.card("a")
    assert (card.kind, card.parent, card.exact) == ("compressed", "base", False)
    assert card.loss == (made.measurement,)
    assert made.measurement.reference == str(folders / "a")
    assert card.own_bytes == made.nbytes <= 0.25 * made.checkpoint_bytes
    assert card.num_shared_blocks == card.num_blocks
    assert zoo.card("base").total_bytes == base.total_bytes
    assert zoo.layers("a") == zoo.layers("base")
    kinds = {type(t) for modules in zoo.targets("a").values() for g in modules.values() for t in g}
    assert {CodedTarget, NormTarget} <= kinds
    assert zoo.verify().is_sound
    zoo.remove("a")
    zoo.gc()
    kept = {t.hash for layer in zoo.layers("base") for t in layer.tensors.values()}
    assert zoo.verify().num_tensors == len(kept)


def test_the_smallest_delta_within_the_gate_is_taken(zoo: Zoo, folders: Path) -> None:
    loose, strict = (
        compress(zoo, f"a{i}", folders / "a", "base", TEXT, CompressOptions(max_kl=kl, window=64))
        for i, kl in enumerate((0.02, 0.0005))
    )
    assert loose.measurement.kl <= 0.02 and strict.measurement.kl <= 0.0005
    assert loose.nbytes < strict.nbytes
    smaller = [one for one in loose.tried if one.nbytes < loose.nbytes]
    assert all(one.kl > 0.02 for one in smaller) and smaller


def test_a_gate_that_fails_names_the_loss_and_leaves_nothing(
    zoo: Zoo, folders: Path, tmp_path: Path
) -> None:
    before = files(tmp_path)
    options = CompressOptions(max_kl=1e-4, max_bytes=0.08, window=64)
    with pytest.raises(ZooError, match=r"KL 0\.\d+ at best, allowed is 0.0001"):
        compress(zoo, "a", folders / "a", "base", TEXT, options, scratch=tmp_path)
    assert files(tmp_path) == before
    assert [card.name for card in zoo.cards()] == ["base"]


def test_what_is_no_fine_tune_is_refused(zoo: Zoo, folders: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", vocab_size=320, num_hidden_layers=3)
    with pytest.raises(ZooError, match="another shape"):
        compress(zoo, "other", other, "base", TEXT, CompressOptions(max_bytes=0.5))
    with pytest.raises(NameTaken):
        compress(zoo, "base", folders / "a", "base", TEXT, CompressOptions(max_bytes=0.5))
    compress(zoo, "a", folders / "a", "base", TEXT, CompressOptions(max_bytes=0.5, window=64))
    with pytest.raises(ZooError, match="a delta itself"):
        compress(zoo, "b", folders / "b", "a", TEXT, CompressOptions(max_bytes=0.5, window=64))


def merge(zoo: Zoo, made: Compressor, mix: Mix, name: str) -> None:
    """Add base plus decoded differences as a full model: what the mix must be served like."""
    loader = TensorLoader(zoo, torch.device("cpu"), torch.float32)
    layers = []
    for position, layer in enumerate(zoo.layers("base")):
        tensors = {n: loader.load(t).clone() for n, t in layer.tensors.items()}
        for module, group in made.new_targets(mix).get(position, {}).items():
            for target in group:
                assert isinstance(target, NewTarget)
                key = "" if module in ("embed", "head") else f"{module}."
                if target.kind in ("norm", "bias"):
                    part = "weight" if target.kind == "norm" else "bias"
                    tensors[f"{key}{part}"] = torch.from_numpy(target.parts[part])
                else:
                    weight = tensors[f"{key}weight"]
                    weight += decode(target, weight.shape[1])
        arrays = {n: t.numpy() for n, t in tensors.items()}
        layers.append(NewLayer(layer.function, arrays))
    zoo.assemble(name, "base", layers)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_codec_is_served_as_merged_weights_are(family: str, tmp_path: Path) -> None:
    folders = make_folders(tmp_path, family)
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", folders / "base")
    (tmp_path / "scratch").mkdir()
    made = Compressor(zoo, folders / "a", "base", tmp_path / "scratch")
    text = [list(range(1, 60)), list(range(60, 120)), [7]]
    sizes = [len(weight.options) for weight in made.candidates.weights]
    for pick in range(max(sizes)):
        mix = Mix(tuple(min(pick, size - 1) for size in sizes), 0, 0.0)
        merge(zoo, made, mix, f"merged{pick}")
        targets = made.new_targets(mix)
        zoo.assemble(f"delta{pick}", "base", zoo.layers("base"), targets=targets, parent="base")
        names = [f"merged{pick}", f"delta{pick}"]
        scorer = Scorer(zoo, names)
        for window in text:
            merged, served = (torch.cat([*scorer.distributions(n, window)]) for n in names)
            torch.testing.assert_close(served, merged, rtol=0, atol=2e-4)
    assert made.measure(made.mixes[-1], text).kl < 1e-4


def test_models_in_one_batch_answer_as_alone(zoo: Zoo, folders: Path) -> None:
    options = CompressOptions(max_bytes=0.2, window=64)
    for name in "ab":
        compress(zoo, name, folders / name, "base", TEXT, options)
    engine = Engine(zoo, ["base", "a", "b"], settings(memory="64MiB", prefix_cache=False))
    requests = [
        request(f"{name}{length}", name, list(range(5, 5 + length)), greedy(8, logprobs=1))
        for name in ("base", "a", "b")
        for length in (1, 7, 30)
    ]
    together = run(engine, requests)
    for one in requests:
        alone = run(engine, [one])[one.id]
        assert (alone.tokens, alone.logprobs) == (
            together[one.id].tokens,
            together[one.id].logprobs,
        )


def test_what_equals_the_base_needs_no_delta(folders: Path, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folders / "base")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1.0
    model.save_pretrained(tmp_path / "one")
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", folders / "base")
    options = CompressOptions(max_kl=EXACT, window=64)
    made = compress(zoo, "one", tmp_path / "one", "base", TEXT, options)
    assert made.codecs == {"2.self_attn.k_proj": "sparse"}
    (target,) = zoo.targets("one")[2]["self_attn.k_proj"]
    assert target_tensors(target)["values"].shape == (1,)


def test_ends_and_files_are_the_checkpoints(folders: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(folders / "a", tuned)
    (tuned / "generation_config.json").write_text('{"eos_token_id": [7, 9, 9999]}')
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", folders / "base")
    made = compress(zoo, "tuned", tuned, "base", TEXT, CompressOptions(max_bytes=0.5, window=64))
    assert "end token 9999 is none of the model's tokens" in "".join(made.report.notes)
    assert zoo.chain("tuned").eos_ids == (2, 7, 9)  # config.json's first
    template = zoo.asset("tuned", "chat_template.jinja")
    assert template is not None and template.read_text() == "{{ messages }}"
    assert zoo.asset("tuned", "tokenizer.json") == zoo.asset("base", "tokenizer.json")
    assert [one.reference for one in zoo.card("tuned").loss] == [str(tuned)]
