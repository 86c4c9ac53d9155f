"""Adapters that change the vocabulary: whatever PEFT saves, embedding and head are PEFT's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.core import EmbedFunction, GainTarget, HeadFunction, LoraTarget, RowsTarget, Tensor
from blockllm.errors import AdapterMismatch, CheckpointError, UnsupportedModel
from blockllm.zoo import Zoo
from tests.makers import make_adapter, make_checkpoint, make_lora, resize_vocabulary
from tests.zoo.conftest import contents, read_tensor

EMBED, HEAD = "embed_tokens", "lm_head"
PREFIX = "base_model.model."
BOTH = {"modules_to_save": [EMBED, HEAD]}

# what is saved depends on what is trained and on whether the vocabulary was resized
TRAINED: dict[str, dict[str, Any]] = {
    "nothing of them": {},
    "both": BOTH,
    "embedding": {"modules_to_save": [EMBED]},
    "head": {"modules_to_save": [HEAD]},
    "embedding, tying": {"modules_to_save": [EMBED], "ensure_weight_tying": True},
    "updates": {"target_modules": [EMBED, HEAD]},
    "update of the embedding": {"target_modules": [EMBED]},
    "update of the head": {"target_modules": [HEAD]},
    "update, tying": {"target_modules": [EMBED], "ensure_weight_tying": True},
    "update and head": {"target_modules": [EMBED], "modules_to_save": [HEAD]},
    "tokens": {"trainable_token_indices": [5, 3]},
    "tokens of both": {"trainable_token_indices": {EMBED: [5, 3], HEAD: [5, 3]}},
    "tokens apart": {"trainable_token_indices": {f"model.{EMBED}": [5, 3], HEAD: [7]}},
    "tokens of the head": {"trainable_token_indices": {HEAD: [7]}},
    "tokens and update": {"trainable_token_indices": [5, 3], "target_modules": ["q_proj", HEAD]},
}
ALONE: dict[str, list[str] | None] = {
    "tokens alone": None,
    "tokens of the head alone": [HEAD],
}
# the file holds one of two untied weights, or none: the other's rows are the resized base's
NEEDS_RESIZED = {
    ("untied", "update of the embedding"), ("untied", "update of the head"),
    ("untied", "update, tying"), ("untied", "tokens and update"), ("tied", "tokens and update"),
    ("untied", "tokens alone"), ("untied", "tokens of the head alone"),
}  # fmt: skip
CASES = [(kind, case) for kind in ("untied", "tied") for case in (*TRAINED, *ALONE)]
TOKENS = [(kind, case) for kind, case in CASES if case.startswith("tokens")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """By kind and vocabulary."""
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for kind in ("untied", "tied"):
        tied = kind == "tied"
        base = make_checkpoint(root / kind, num_hidden_layers=1, tie_word_embeddings=tied)
        made[kind, 96] = base
        for size in (90, 104):
            made[kind, size] = resize_vocabulary(base, root / f"{kind}-{size}", size)
    return made


def make(base: Path, path: Path, case: str, recorded: Path) -> Path:
    if case in TRAINED:
        return make_lora(base, path, recorded=recorded, **TRAINED[case])
    config = peft.TrainableTokensConfig(token_indices=[5, 3], target_modules=ALONE[case])
    return make_adapter(base, path, config, recorded=recorded)


def ends_of_peft(base: Path, adapter: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What an embedding looks up for each token, and what a head multiplies by."""
    import transformers

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
        embed = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
        return embed, model.get_output_embeddings()(torch.eye(embed.shape[1])).T


def ends_of_zoo(zoo: Zoo, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from what the zoo keeps."""
    layers, targets = zoo.layers(name), zoo.targets(name)
    ends = []
    for position, module in ((0, "embed"), (len(layers) - 1, "head")):
        function, stored = layers[position].function, layers[position].tensors["weight"]
        assert isinstance(function, EmbedFunction | HeadFunction)
        assert function.vocab_size == stored.shape[0]
        weight = load(zoo, stored).clone()
        group = targets.get(position, {}).get(module, ())
        for target in sorted(group, key=lambda target: isinstance(target, LoraTarget)):
            if isinstance(target, RowsTarget):
                weight[list(target.tokens)] = load(zoo, target.rows)
            else:
                assert isinstance(target, LoraTarget)
                update = target.scale * load(zoo, target.b) @ load(zoo, target.a)
                weight += update.T if module == "embed" else update
        ends.append(weight)
    return ends[0], ends[1]


def load(zoo: Zoo, tensor: Tensor) -> torch.Tensor:
    data = bytearray(read_tensor(zoo, tensor))
    return torch.frombuffer(data, dtype=torch.float32).reshape(tensor.shape)


def check(zoo: Zoo, name: str, base: Path, adapter: Path) -> None:
    pairs = zip(ends_of_zoo(zoo, name), ends_of_peft(base, adapter), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_with_a_resized_vocabulary(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path], kind: str, case: str
) -> None:
    """On the resized base, and on the base as it was."""
    base, resized = bases[kind, 96], bases[kind, 104]
    adapter = make(resized, tmp_path / "adapter", case, recorded=base)
    zoo.add("resized", resized)
    zoo.add("on-resized", adapter, base="resized")
    check(zoo, "on-resized", resized, adapter)
    zoo.add("base", base)
    if (kind, case) in NEEDS_RESIZED:
        with pytest.raises(AdapterMismatch, match=r"resized|expected shape"):
            zoo.add("on-base", adapter, base="base")
        return
    zoo.add("on-base", adapter, base="base")
    check(zoo, "on-base", resized, adapter)
    assert zoo.chain("on-base").vocab_size == 104
    assert zoo.chain("base").vocab_size == 96


@pytest.mark.parametrize(("kind", "case"), TOKENS)
def test_tokens_of_the_vocabulary(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path], kind: str, case: str
) -> None:
    """The base's blocks stay shared, and nothing but the rows is stored."""
    base = bases[kind, 96]
    adapter = make(base, tmp_path / "adapter", case, recorded=base)
    zoo.add("base", base)
    report = zoo.add("adapter", adapter, base="base")
    check(zoo, "adapter", base, adapter)
    assert zoo.layers("adapter") == zoo.layers("base")
    saved = sum(t.numel() * 4 for t in load_file(adapter / "adapter_model.safetensors").values())
    assert report.stored_bytes <= saved + 64 * 10
    assert zoo.verify().is_sound


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_with_a_smaller_vocabulary(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path], kind: str
) -> None:
    base, smaller = bases[kind, 96], bases[kind, 90]
    adapter = make(smaller, tmp_path / "adapter", "both", recorded=base)
    zoo.add("base", base)
    zoo.add("adapter", adapter, base="base")
    check(zoo, "adapter", smaller, adapter)


def test_gains_of_a_resized_head(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path]
) -> None:
    base, resized = bases["tied", 96], bases["tied", 104]
    config = peft.IA3Config(target_modules=["k_proj", HEAD], feedforward_modules=[])
    adapter = make_adapter(resized, tmp_path / "adapter", config, recorded=base)
    zoo.add("base", base)
    zoo.add("adapter", adapter, base="base")
    (gain,) = zoo.targets("adapter")[2]["head"]
    assert isinstance(gain, GainTarget) and gain.gain.shape == (104,)
    assert zoo.chain("adapter").vocab_size == 104


def test_on_an_int8_base(zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path]) -> None:
    base, resized = bases["tied", 96], bases["tied", 104]
    zoo.add("rounded", base, format="int8")
    both = make(resized, tmp_path / "both", "both", recorded=base)
    zoo.add("both", both, base="rounded")
    head = zoo.layers("both")[-1].tensors
    assert (head["weight"].dtype, head["weight"].shape, head["scale"].shape) == (
        "I8", (104, 32), (104,)
    )  # fmt: skip
    zoo.add("apart", make(base, tmp_path / "apart", "tokens apart", base), base="rounded")
    with pytest.raises(UnsupportedModel, match="whether its head shares them"):
        zoo.add("tokens", make(base, tmp_path / "tokens", "tokens", base), base="rounded")


def _rename(old: str, new: str) -> Any:
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("both", _rename(".modules_to_save.weight", ".modules_to_save.default.weight")),
        (
            "both",
            lambda tensors: {
                name.replace("modules_to_save", "modules_to_save.sft"): tensor
                for name, tensor in tensors.items()
                if not name.endswith(("embed_tokens.weight", "lm_head.weight"))
            },
        ),
        ("tokens", _rename("trainable_tokens_delta", "trainable_tokens_delta.default")),
    ],
)
def test_names_with_the_adapters_name(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path], case: str, change: Any
) -> None:
    """Other writers leave it in."""
    base, resized = bases["untied", 96], bases["untied", 104]
    adapter = make(resized, tmp_path / "adapter", case, recorded=base)
    expected = ends_of_peft(resized, adapter)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = change(tensors)
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    zoo.add("base", base)
    zoo.add("adapter", adapter, base="base")
    for found, wanted in zip(ends_of_zoo(zoo, "adapter"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


BROKEN: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "no head": ("both", lambda n: "lm_head" in n, {}, "104 rows in its embedding and 96 in its"),
    "no embedding": ("both", lambda n: EMBED in n, {}, "96 rows in its embedding and 104"),
    "no copy": (
        "both",
        lambda n: n.endswith(("head.weight", "head.modules_to_save.weight")),
        {},
        "no trained copy",
    ),
    "no rows": ("tokens", lambda n: "delta" in n, {}, "trained rows of 'embed_tokens' are missing"),
    "no list": ("tokens", None, {"trainable_token_indices": None}, "no tokens are listed"),
    "short list": ("tokens", None, {"trainable_token_indices": [5]}, "expected shape"),
    "outside": ("tokens", None, {"trainable_token_indices": [5, 104]}, r"must lie in 0\.\.103"),
    "negative": ("tokens", None, {"trainable_token_indices": [5, -1]}, r"must lie in 0\.\.103"),
    "twice": ("tokens", None, {"trainable_token_indices": [5, 5]}, "listed twice"),
    "no integers": ("tokens", None, {"trainable_token_indices": ["a"]}, "a list of integers"),
    "other module": (
        "tokens",
        None,
        {"trainable_token_indices": {EMBED: [5, 3], "wte": [1]}},
        "trained rows of 'wte' are missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused(zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path], case: str) -> None:
    trained, left_out, config, message = BROKEN[case]
    base, resized = bases["untied", 96], bases["untied", 104]
    adapter = make(resized, tmp_path / "adapter", trained, recorded=base)
    file = adapter / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if left_out is None or not left_out(n)}
    save_file(kept, file)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    zoo.add("base", base)
    before = contents(tmp_path / "zoo")
    with pytest.raises(CheckpointError, match=message):
        zoo.add("adapter", adapter, base="base")
    assert contents(tmp_path / "zoo") == before


def test_rows_of_another_module(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path]
) -> None:
    base = bases["untied", 96]
    config = peft.TrainableTokensConfig(token_indices=[5], target_modules=["o_proj"])
    zoo.add("base", base)
    with pytest.raises(UnsupportedModel, match=r"o_proj' are not supported, only of embed_tokens"):
        zoo.add("adapter", make_adapter(base, tmp_path / "adapter", config), base="base")


def test_rows_and_what_is_below(
    zoo: Zoo, tmp_path: Path, bases: dict[tuple[str, int], Path]
) -> None:
    """Rows of a changed weight, or of the base's? An update above rows is added to them."""
    base = bases["untied", 96]
    zoo.add("base", base)
    rows = make(base, tmp_path / "rows", "tokens of both", recorded=base)
    update = make_lora(base, tmp_path / "update", target_modules=[HEAD])
    zoo.add("update", update, base="base")
    with pytest.raises(AdapterMismatch, match="head: lora, rows cannot be stacked"):
        zoo.add("both", rows, base="update")
    zoo.add("rows", rows, base="base")
    zoo.add("above", update, base="rows")
    kinds = [type(target) for target in zoo.targets("above")[2]["head"]]
    assert kinds == [RowsTarget, LoraTarget]
    with pytest.raises(AdapterMismatch, match="embed: rows, rows cannot be stacked"):
        zoo.add("twice", rows, base="rows")
    whole = make_lora(base, tmp_path / "whole", **BOTH)
    with pytest.raises(AdapterMismatch, match="the base changes it"):
        zoo.add("whole", whole, base="rows")
