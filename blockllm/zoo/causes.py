"""Why a folder cannot be read as a model or an adapter: what it is instead, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from blockllm.errors import CheckpointError, UnsafeCheckpoint, UnsupportedModel
from blockllm.zoo.foreign import is_there

# the call that writes files without pickle
SAVING = "save_pretrained(..., safe_serialization=True)"
GGUF = "a GGUF file, which is not supported yet: add the Hugging Face checkpoint it was made from"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# what trainers leave beside weights
_NO_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)\w*\.\w+"
)
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})")
_MAX_NAMES = 10


class Cause(NamedTuple):
    """A file name's pattern, and what a folder with such a file is and needs; {folder} is its path,
    {file} the first match."""

    pattern: str
    text: str
    kind: type[CheckpointError] = UnsupportedModel


_LLAMA = "Llama's own format ({file}); the model's hub page mostly has model-*.safetensors too"
_ORIGINAL = "add the Hugging Face checkpoint it was made from"
_LOAD = f"load them into PyTorch and save with {SAVING}"
_THEN = "put config.json and the tokenizer's files beside the result and add that folder"
# what a trainer leaves before its shards are joined
_SHARDED = (
    Cause("pytorch_model_fsdp_*", "{file} is a sharded FSDP checkpoint; join it with `accelerate "
          f"merge-weights {{folder}}/{{file}} OUT`, {_THEN}"),
    Cause("*.distcp", "sharded by torch.distributed.checkpoint; join it with `python -m "
          "torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt`, load that and "
          f"save the model with {SAVING}"),
    Cause("*/*.distcp", "{file} is a shard of torch.distributed.checkpoint; join them with `python "
          "-m torch.distributed.checkpoint.format_utils dcp_to_torch SHARDS OUT.pt`, load that and "
          f"save the model with {SAVING}"),
    *(
        Cause(pattern, "a sharded DeepSpeed ZeRO checkpoint; join it with `python -m "
              f"deepspeed.utils.zero_to_fp32 {{folder}} OUT --safe_serialization`, {_THEN}")
        for pattern in ("zero_to_fp32.py", "*_optim_states.pt", "global_step*/*_optim_states.pt")
    ),
    Cause("model_world_size_*_rank_*.pt", "a sharded verl checkpoint; join it with `python -m "
          "verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT` and add "
          "OUT"),
    Cause("latest_checkpointed_iteration.txt", "a Megatron checkpoint; convert it to the Hugging "
          "Face format with the tools of its trainer"),
)  # fmt: skip
_FORMATS = (
    Cause("*.gguf", f"{{file}} is {GGUF}"),
    Cause("consolidated*.safetensors", "Mistral's own format ({file}); the model's hub page mostly "
          "has model-*.safetensors too, else convert it with transformers' "
          "convert_mistral_weights_to_hf.py"),
    Cause("consolidated*.pth", f"{_LLAMA}, else convert it with `python -m "
          "transformers.models.llama.convert_llama_weights_to_hf`", UnsafeCheckpoint),
    Cause("original/consolidated*.pth", _LLAMA, UnsafeCheckpoint),
    Cause("model_index.json", "a diffusers pipeline, which makes images and no text"),
    Cause("*.onnx", f"{{file}} is an ONNX graph; {_ORIGINAL}"),
    Cause("onnx/*.onnx", f"{{file}} is an ONNX graph; {_ORIGINAL}"),
    Cause("openvino_*.xml", f"{{file}} is an OpenVINO graph; {_ORIGINAL}"),
    Cause("*.h5", f"{{file}} has TensorFlow weights; {_LOAD}"),
    Cause("*.msgpack", f"{{file}} has Flax weights; {_LOAD}"),
    Cause("model-?????-of-?????.safetensors", f"there are shards, but no {INDEX}; fetch the folder "
          "again", CheckpointError),
    Cause("model.*.safetensors", f"{{file}} is a variant; rename it to {WEIGHTS}",
          CheckpointError),
)  # fmt: skip


def explain(folder: Path, name: str, saving: str = SAVING) -> CheckpointError:
    """The error for a folder that lacks the file `name`, with the real cause where it can be told.
    `saving` is the call that writes such a file.
    """
    sharded, other = _find(folder, _SHARDED), _find(folder, _FORMATS)
    pickled = sorted(path.name for path in folder.iterdir() if _is_pickled(path))
    usual = [file for file in pickled if file.startswith("pytorch_model")]
    # beside the usual pickled weights, shards and files in other formats are copies of them
    cause = sharded or other
    if cause is not None and not usual:
        return cause
    if pickled:
        return UnsafeCheckpoint(
            f"{folder}: {pickled[0]} is pickled, and loading it could run code. Load the model in "
            f"a place you trust and save it again with {saving}, then add that folder"
        )
    return CheckpointError(f"{folder}: no {name}{_inside(folder)}")


def _find(folder: Path, causes: tuple[Cause, ...]) -> CheckpointError | None:
    for cause in causes:
        found = sorted(folder.glob(cause.pattern))
        if found:
            file = found[0].relative_to(folder)
            return cause.kind(f"{folder}: {cause.text.format(folder=folder, file=file)}")
    return None


def _is_pickled(path: Path) -> bool:
    return path.suffix in _PICKLED and not _NO_WEIGHTS.fullmatch(path.name)


def _inside(folder: Path) -> str:
    """What the folder has instead of a model: models in subfolders, other files, nothing."""
    names = sorted(path.name for path in folder.iterdir())
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    numbers = [int(match[1]) for path in folders if (match := _CHECKPOINT.fullmatch(path.name))]
    if numbers:
        latest = folder / f"checkpoint-{max(numbers)}"
        return (
            f"; a trainer saved {len(numbers)} checkpoints in it and no final model: to add the "
            f"latest give {latest}"
        )
    snapshots = sorted(folder.glob("snapshots/*"))
    candidates = [path for path in (*folders, *snapshots) if is_candidate(path)]
    if len(candidates) == 1:
        what = "adapter" if is_there(candidates[0] / ADAPTER_CONFIG) else "model"
        return f"; the only {what} is in a subfolder: give {candidates[0]}"
    if candidates:
        listed = _listed([str(path.relative_to(folder)) for path in candidates])
        return f"; its subfolders hold {listed}: give one of them, or `--all {folder}`"
    if WEIGHTS in names or INDEX in names:
        return "; the weights cannot be read without it: copy it from the model they belong to"
    if ADAPTER_WEIGHTS in names:
        return f", but {ADAPTER_WEIGHTS}: an adapter cannot be read without {ADAPTER_CONFIG}"
    if "training_args.bin" in names:
        return (
            "; a trainer left its settings there and no weights: with FSDP or ZeRO they are in its "
            "checkpoint folders, to be joined first"
        )
    return f"; the folder holds {_listed(names)}" if names else "; the folder is empty"


def is_candidate(folder: Path) -> bool:
    """Whether a folder looks like a model's or an adapter's."""
    return any(is_there(folder / name) for name in (ADAPTER_CONFIG, CONFIG))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(name[:80] for name in names[:_MAX_NAMES]) + more
