"""Adding a checkpoint takes little memory, whatever its size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MB = 1 << 20
SCRIPT = """
import re, sys
from blockllm.zoo import Zoo
report = Zoo(sys.argv[1]).add("model", sys.argv[2])
# not ru_maxrss: that remembers the process this one was forked from
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(report.total_bytes, int(peak[1]) * 1024)
"""


def make_sparse(path: Path, num_layers: int) -> int:
    """A bfloat16 Llama of zeros whose file takes no room on the disk; returns its bytes."""
    hidden, inner, vocab = 2048, 8192, 512
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden}
    config |= {"intermediate_size": inner, "num_hidden_layers": num_layers, "vocab_size": vocab}
    config |= {"num_attention_heads": 16, "tie_word_embeddings": True}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": [inner, hidden] for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = [hidden, inner]
        for name in ("input", "post_attention"):
            shapes[f"{prefix}{name}_layernorm.weight"] = [hidden]
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape}
        header[name]["data_offsets"] = [position, position + size]
        position += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, entry in enumerate(header.values()):
            offset = entry["data_offsets"][0]
            file.seek(8 + len(text) + offset)
            file.write(index.to_bytes(2, "little"))  # or all would be one tensor
        file.truncate(8 + len(text) + position)
    return position


def test_peak_memory(tmp_path: Path) -> None:
    size = make_sparse(tmp_path / "model", num_layers=5)
    assert size > 600 * MB
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "zoo"), str(tmp_path / "model")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    total, peak = map(int, run.stdout.split())
    assert total == size
    largest = 2 * 2048 * 8192
    assert peak < 300 * MB + 2 * largest
    assert peak < 100 * MB  # what it really takes: the buffer, the interpreter, the catalogue
