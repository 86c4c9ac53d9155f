"""Write a benchmark family to disk: a base with random weights, fine-tunes and adapters.

    python -m tools.studies.bench_family OUT [--layers 16 --hidden 1024] [--full-finetunes 8]
        [--loras 8]

Random weights measure speed and memory, not quality. A full fine-tune is a whole checkpoint of
its own; its embedding, head and the layers below --changed-from-layer are byte-identical to the
base's. Hugging Face and PEFT file formats, fp32, written without either library.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Tensors = dict[str, torch.Tensor]
Kind = Literal["llama", "qwen2", "qwen3"]
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
RANK = 16
SPECIAL = ["<s>", "</s>", "<pad>"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


class Shape(NamedTuple):
    """Sizes of the family: heads of 64, half as many key-value heads. `seed`: of its weights."""

    layers: int
    hidden: int
    vocab: int
    dtype: str = "float32"  # of base and full fine-tunes
    kind: Kind = "llama"
    seed: int = 0

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // 2)

    @property
    def intermediate(self) -> int:
        return self.hidden * 11 // 4 // 64 * 64

    def linears(self) -> dict[str, tuple[int, int]]:
        """[out, in] of the linears of one layer."""
        hidden, inner = self.hidden, self.intermediate
        query, key = self.heads * 64, self.kv_heads * 64
        return {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    def vectors(self) -> dict[str, int]:
        """Sizes of the norms and biases of one layer."""
        norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
        sizes = dict.fromkeys(norms, self.hidden)
        if self.kind == "qwen2":
            names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            sizes |= {f"{name}.bias": self.linears()[name][0] for name in names}
        if self.kind == "qwen3":
            sizes |= {f"self_attn.{name}_norm.weight": 64 for name in "qk"}
        return sizes

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": [ARCHITECTURES[self.kind]],
            "model_type": self.kind,
            "dtype": self.dtype,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }


def random_layer(shape: Shape, index: int, generator: torch.Generator) -> Tensors:
    """One decoder layer, initialised as Llama is; biases are random, as after training."""
    prefix = f"model.layers.{index}."
    tensors = {
        f"{prefix}{name}.weight": 0.02 * torch.randn(size, generator=generator)
        for name, size in shape.linears().items()
    }
    for name, length in shape.vectors().items():
        is_norm = name.endswith("norm.weight")
        vector = torch.ones(length) if is_norm else 0.02 * torch.randn(length, generator=generator)
        tensors[prefix + name] = vector
    return tensors


def random_base(shape: Shape) -> Tensors:
    """All tensors of the base."""
    generator = torch.Generator().manual_seed(shape.seed)
    size = (shape.vocab, shape.hidden)
    tensors = {
        "model.embed_tokens.weight": 0.02 * torch.randn(size, generator=generator),
        "lm_head.weight": 0.02 * torch.randn(size, generator=generator),
        "model.norm.weight": torch.ones(shape.hidden),
    }
    for index in range(shape.layers):
        tensors |= random_layer(shape, index, generator)
    return tensors


def fine_tune(base: Tensors, shape: Shape, first_changed: int, seed: int) -> Tensors:
    """The base with small changes in every tensor of the layers from `first_changed` on."""
    generator = torch.Generator().manual_seed(1_000 * shape.seed + 100 + seed)
    tensors = dict(base)
    for index in range(first_changed, shape.layers):
        for name, noise in random_layer(shape, index, generator).items():
            if noise.ndim == 1:  # a norm
                noise = torch.randn(noise.shape, generator=generator)
            tensors[name] = base[name] + 0.02 * noise
    return tensors


def whole_fine_tune(base: Tensors, shape: Shape, seed: int) -> Tensors:
    """The base with small changes in every tensor, embedding and head, too."""
    tensors = fine_tune(base, shape, 0, seed)
    generator = torch.Generator().manual_seed(1_000 * shape.seed + 300 + seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        noise = torch.randn(base[name].shape, generator=generator)
        tensors[name] = base[name] + 0.0004 * noise
    return tensors


def lora(shape: Shape, seed: int) -> Tensors:
    """An adapter on every linear; both factors are random, as after training."""
    generator = torch.Generator().manual_seed(1_000 * shape.seed + 200 + seed)
    tensors: Tensors = {}
    for index in range(shape.layers):
        for name, (rows, columns) in shape.linears().items():
            prefix = f"base_model.model.model.layers.{index}.{name}"
            a = torch.randn((RANK, columns), generator=generator) / columns**0.5
            tensors[f"{prefix}.lora_A.weight"] = a
            tensors[f"{prefix}.lora_B.weight"] = 0.01 * torch.randn(
                (rows, RANK), generator=generator
            )
    return tensors


def adapter_config(shape: Shape, base: Path) -> dict[str, Any]:
    """adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [name.partition(".")[2] for name in shape.linears()],
    }


def train_tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE from the standard library's sources."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(sorted(map(str, Path(sysconfig.get_path("stdlib")).glob("*.py"))), trainer)
    return tokenizer


def save_checkpoint(folder: Path, shape: Shape, tensors: Tensors, tokenizer: Tokenizer) -> None:
    """One checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(getattr(torch, shape.dtype)) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", shape.config())
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "chat_template": TEMPLATE}
    _write_json(folder / "tokenizer_config.json", settings)


def save_adapter(folder: Path, shape: Shape, tensors: Tensors, base: Path) -> None:
    """One adapter folder in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    _write_json(folder / "adapter_config.json", adapter_config(shape, base))


def make_family(
    out: Path, shape: Shape, full_finetunes: int, loras: int, changed_from_layer: int
) -> None:
    """Write base, ft0 …, lora0 … under `out`."""
    tokenizer, base = train_tokenizer(shape.vocab), random_base(shape)
    save_checkpoint(out / "base", shape, base, tokenizer)
    print(f"base: {sum(t.numel() for t in base.values()) / 1e6:.0f} M parameters", flush=True)
    for number in range(full_finetunes):
        tuned = fine_tune(base, shape, changed_from_layer, number)
        save_checkpoint(out / f"ft{number}", shape, tuned, tokenizer)
    for number in range(loras):
        save_adapter(out / f"lora{number}", shape, lora(shape, number), out / "base")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and write the family."""
    parser = argparse.ArgumentParser(description="Write a benchmark family with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--full-finetunes", type=int, default=8)
    parser.add_argument("--loras", type=int, default=8)
    parser.add_argument("--changed-from-layer", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    given = parser.parse_args()
    shape = Shape(given.layers, given.hidden, given.vocab, given.dtype)
    make_family(given.out, shape, given.full_finetunes, given.loras, given.changed_from_layer)


if __name__ == "__main__":
    main()
