"""What lies in a folder instead of a file: refused by name, never waited for, never copied."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo
from blockllm.zoo.many import add_all
from tests.makers import make_checkpoint, make_lora

OF_MODELS = [
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip
OF_ADAPTERS = ["adapter_config.json", "adapter_model.safetensors"]
INSTEAD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "link to the terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to a process": lambda path: path.symlink_to("/proc/self/environ"),
    "link out": lambda path: path.symlink_to("/etc/passwd"),
    "link up": lambda path: path.symlink_to(f"../{path.parent.name}/../other"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


def few(files: list[str]) -> list[tuple[str, str]]:
    """Each file with the two worst things to find in its place."""
    return [(file, how) for file in files for how in ("pipe", "link out")]


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A read that waits fails the test instead of stopping all."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("a read waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return make_lora(llama, tmp_path_factory.mktemp("adapter") / "lora")


def check_refused(zoo: Zoo, source: Path, file: str, how: str) -> None:
    (source.parent / "other").write_text("{}")
    (source / file).unlink(missing_ok=True)
    INSTEAD[how](source / file)
    with pytest.raises(CheckpointError, match=file) as caught:
        zoo.add("bad", source)
    expected = ("not a regular file", "leaves its folder", "No such file", "circle", "symbolic")
    assert any(words in str(caught.value) for words in expected)
    zoo.gc()


@pytest.mark.parametrize(
    ("file", "how"), sorted({*few(OF_MODELS), *(("config.json", how) for how in INSTEAD)})
)
def test_no_file_of_a_model_is_waited_for(
    zoo: Zoo, tmp_path: Path, llama: Path, file: str, how: str
):
    zoo.add("base", llama)
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    if file.endswith("index.json"):
        (source / "model.safetensors").unlink()
    check_refused(zoo, source, file, how)


@pytest.mark.parametrize(("file", "how"), few(OF_ADAPTERS))
def test_no_file_of_an_adapter_is_waited_for(
    zoo: Zoo, tmp_path: Path, llama: Path, adapter: Path, file: str, how: str
):
    zoo.add("base", llama)
    check_refused(zoo, Path(shutil.copytree(adapter, tmp_path / "source")), file, how)


@pytest.mark.parametrize(("file", "how"), few(["tokenizer.model", "vocab.json", "merges.txt"]))
def test_no_vocabulary_is_waited_for(zoo: Zoo, tmp_path: Path, llama: Path, file: str, how: str):
    zoo.add("base", llama)
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    (source / "tokenizer.json").unlink()
    kind = "LlamaTokenizer" if file == "tokenizer.model" else "Qwen2Tokenizer"
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    if file != "tokenizer.model":
        (source / "vocab.json").write_text('{"a": 0}')
        (source / "merges.txt").write_text("")
    check_refused(zoo, source, file, how)


@pytest.mark.parametrize("how", ["pipe", "link out"])
def test_no_shard_is_waited_for(zoo: Zoo, tmp_path: Path, llama: Path, how: str):
    zoo.add("base", llama)
    source = make_checkpoint(tmp_path / "source", max_shard_size="30KB")
    check_refused(zoo, source, sorted(source.glob("model-*.safetensors"))[1].name, how)


def test_a_cache_whose_blobs_are_elsewhere_is_not_followed(zoo: Zoo, tmp_path: Path, llama: Path):
    snapshot = tmp_path / "models--a--b/snapshots/1"
    shutil.copytree(llama, snapshot)
    (tmp_path / "models--a--b/blobs").symlink_to("/etc")
    (snapshot / "chat_template.jinja").unlink(missing_ok=True)
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/passwd")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: a link that leaves"):
        zoo.add("bad", snapshot)


def test_links_inside_a_folder_are_followed(zoo: Zoo, tmp_path: Path, llama: Path):
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    (source / "config.json").rename(source / "other.json")
    (source / "config.json").symlink_to("other.json")
    assert zoo.add("model", source).num_blocks == 3


def test_adding_many_refuses_what_cannot_be_opened_and_adds_the_rest(
    zoo: Zoo, tmp_path: Path, llama: Path
):
    root = tmp_path / "many"
    shutil.copytree(llama, root / "good")
    for file in ("config.json", "adapter_config.json"):
        (root / f"bad-{file}").mkdir()
        os.mkfifo(root / f"bad-{file}" / file)
    outcomes = {outcome.name: outcome for outcome in add_all(zoo, root)}
    assert outcomes["good"].report is not None
    for file in ("config.json", "adapter_config.json"):
        assert "not a regular file" in str(outcomes[f"bad-{file}"].refused)
