"""Adding full checkpoints: bytes kept exactly, stored once, cut without being rewritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from blockllm.core import Chain, HeadFunction
from blockllm.errors import NameTaken, UnknownModel, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.families.names import locate_tensor, tensor_name
from tests.makers import ARCHITECTURES, make_checkpoint
from tests.zoo.conftest import contents, read_tensor, saved_tensors


def chain_tensors(zoo: Zoo, chain: Chain) -> dict[str, bytes]:
    layers = [layer for entry in chain.entries for layer in entry.block.layers]
    return {
        tensor_name(position, name, len(layers) - 2): read_tensor(zoo, tensor)
        for position, layer in enumerate(layers)
        for name, tensor in layer.tensors.items()
    }


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_bytes_equal_the_checkpoints(
    zoo: Zoo, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    source = make_checkpoint(tmp_path / family, family, dtype=dtype)
    report = zoo.add("model", source)
    expected = saved_tensors(source)
    assert chain_tensors(zoo, zoo.chain("model")) == expected
    assert report.total_bytes == sum(map(len, expected.values()))
    assert 0 <= report.stored_bytes - report.total_bytes < 64 * len(expected)
    assert zoo.card("model").dtype == str(dtype).removeprefix("torch.")
    assert zoo.verify().is_sound


def test_shards(zoo: Zoo, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", max_shard_size="40KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    zoo.add("model", source)
    assert chain_tensors(zoo, zoo.chain("model")) == saved_tensors(source)


def test_tensors_are_aligned(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add("model", make_checkpoint(tmp_path / "m", hidden_size=24, head_dim=6, vocab_size=97))
    chain = zoo.chain("model")
    tensors = [t for e in chain.entries for x in e.block.layers for t in x.tensors.values()]
    assert all(tensor.offset % 64 == 0 for tensor in tensors)


def test_first_model_enters_coarse(zoo: Zoo, llama: Path) -> None:
    report = zoo.add("model", llama)
    sizes = [len(entry.block.layers) for entry in zoo.chain("model").entries]
    assert sizes == [1, 4, 1]
    assert (report.num_blocks, report.num_shared_blocks) == (3, 0)


def test_sibling_stores_only_what_differs(zoo: Zoo, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 176}
    base = make_checkpoint(tmp_path / "base", **sizes)
    sibling = make_checkpoint(
        tmp_path / "sibling", seed=1, copy_layers_from=base, copied_layers=tuple(range(6)), **sizes
    )
    zoo.add("base", base)
    before = contents(tmp_path / "zoo")["files"]
    report = zoo.add("sibling", sibling)
    assert report.stored_bytes <= 0.26 * report.total_bytes
    after = contents(tmp_path / "zoo")["files"]
    assert {name: after[name] for name in before} == before
    chains = zoo.chains()
    for name, chain in chains.items():
        assert [len(entry.block.layers) for entry in chain.entries] == [1, 6, 2, 1], name
    shared = [
        chains["base"].entries[i].block is chains["sibling"].entries[i].block for i in range(4)
    ]
    assert shared == [True, True, False, True]
    assert report.num_shared_blocks == 3


def test_removal_joins_blocks_again(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    before = zoo.chain("base")
    sibling = make_checkpoint(
        tmp_path / "sibling", seed=1, copy_layers_from=llama, copied_layers=(0, 1)
    )
    zoo.add("sibling", sibling)
    assert zoo.chain("base") != before
    zoo.remove("sibling")
    assert zoo.chain("base") == before
    assert zoo.gc().num_bytes > 0
    assert zoo.verify().is_sound
    assert zoo.gc().num_files == 0


def test_removed_weights_are_found_again_before_gc(zoo: Zoo, llama: Path) -> None:
    zoo.add("model", llama)
    zoo.remove("model")
    assert zoo.add("again", llama).stored_bytes == 0
    assert zoo.verify().is_sound


def test_gc_empties_the_folder(zoo: Zoo, llama: Path, tmp_path: Path) -> None:
    zoo.add("model", llama)
    zoo.remove("model")
    zoo.gc()
    assert contents(tmp_path / "zoo")["files"] == {}


@pytest.mark.parametrize("saved", ["embedding", "head", "both"])
def test_tied_head_is_the_embedding(zoo: Zoo, tmp_path: Path, tied: Path, saved: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(tied, source)
    _save_tied(source, saved)
    report = zoo.add("model", source)
    embed, head = _ends(zoo.chain("model"))
    assert embed.tensors["weight"] == head.tensors["weight"]
    assert report.total_bytes == sum(map(len, saved_tensors(tied).values()))


def test_tied_config_with_two_different_tensors_stays_untied(
    zoo: Zoo, tmp_path: Path, tied: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tied, source)
    _save_tied(source, "both", difference=1.0)
    zoo.add("model", source)
    embed, head = _ends(zoo.chain("model"))
    assert embed.tensors["weight"] != head.tensors["weight"]


def _ends(chain: Chain) -> tuple:  # type: ignore[type-arg]
    head = chain.entries[-1].block.layers[-1]
    assert isinstance(head.function, HeadFunction)
    return chain.entries[0].block.layers[0], head


def _save_tied(source: Path, saved: str, difference: float = 0.0) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    embed = tensors.pop("model.embed_tokens.weight")
    if saved in ("embedding", "both"):
        tensors["model.embed_tokens.weight"] = embed.clone()
    if saved in ("head", "both"):
        tensors["lm_head.weight"] = embed + difference
    save_file(tensors, source / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": [7, 8]}, (5, 7, 8)),
        ({"eos_token_id": 5}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": 5}, {"eos_token_id": None}, (5,)),
        ({"eos_token_id": [5, 6]}, None, (5, 6)),
        ({"eos_token_id": None}, None, ()),
        ({"eos_token_id": None}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [3, 10**30, -1]}, {"eos_token_id": [96, 95]}, (3, 95)),
        ({}, None, (2,)),
        ({}, {"eos_token_id": 7}, (7,)),
    ],
)
def test_end_tokens(
    zoo: Zoo, tmp_path: Path, llama: Path, config: object, generation: object, expected: object
) -> None:
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    values = json.loads((source / "config.json").read_text())
    values.pop("eos_token_id")
    (source / "config.json").write_text(json.dumps(values | config))  # type: ignore[operator]
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / file).unlink()
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps(generation))
    zoo.add("model", source)
    assert zoo.chain("model").eos_ids == expected


def test_assets(zoo: Zoo, llama: Path, tied: Path) -> None:
    zoo.add("model", llama)
    zoo.add("bare", tied)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = zoo.asset("model", file)
        assert path is not None
        assert path.read_bytes() == (llama / file).read_bytes()
    assert zoo.asset("model", "special_tokens_map.json") is None
    assert zoo.asset("bare", "tokenizer.json") is None
    with pytest.raises(ZooError, match=r"config\.json"):
        zoo.asset("model", "../config.json")
    with pytest.raises(UnknownModel):
        zoo.asset("nobody", "tokenizer.json")


def test_hub_style_links_are_followed(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in llama.iterdir():
        blob = cache / "blobs" / path.name.replace(".", "-")
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    zoo.add("model", snapshot)
    assert zoo.asset("model", "tokenizer.json") is not None


def test_names(zoo: Zoo, llama: Path, tmp_path: Path) -> None:
    for name in ("", ".hidden", "a/b", "a b", "x" * 97, "ü", "a\n", "-a"):
        with pytest.raises(ZooError, match="cannot be a model's name"):
            zoo.add(name, llama)
    zoo.add("Model-1.5_b", llama)
    before = contents(tmp_path / "zoo")
    with pytest.raises(NameTaken):
        zoo.add("Model-1.5_b", llama)
    assert contents(tmp_path / "zoo") == before
    for refused in (zoo.card, zoo.chain, zoo.remove):
        with pytest.raises(UnknownModel):
            refused("nobody")


def test_cards(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("one", llama)
    zoo.add("two", make_checkpoint(tmp_path / "two", seed=1, copy_layers_from=llama))
    one, two = zoo.cards()
    assert (one.name, two.name) == ("one", "two")
    assert (one.kind, one.family, one.root) == ("full", "llama", str(llama))
    assert one.shared_bytes == two.shared_bytes == one.total_bytes - one.own_bytes
    head = zoo.chain("one").entries[-1].block.nbytes
    embed = zoo.chain("one").entries[0].block.nbytes
    assert one.shared_bytes == head + embed


def test_locate_inverts_tensor_name() -> None:
    places = [(0, "weight"), (1, "a.b"), (7, "a.b"), (8, "norm.weight"), (8, "weight")]
    for position, name in places:
        assert locate_tensor(tensor_name(position, name, 7), 7) == (position, name)
    for name in ("model.layers.7.a", "model.layers.01.a", "model.layers.x.a", "other"):
        assert locate_tensor(name, 7) is None


def test_weights_that_models_need_are_counted_once(zoo: Zoo, llama: Path) -> None:
    zoo.add("one", llama)
    (card,) = zoo.cards()
    assert zoo.weight_bytes() == card.total_bytes
    zoo.add("two", llama)
    assert zoo.weight_bytes() == card.total_bytes < zoo.disk_bytes()
    zoo.remove("one")
    zoo.remove("two")
    assert zoo.weight_bytes() == 0 < zoo.disk_bytes()
