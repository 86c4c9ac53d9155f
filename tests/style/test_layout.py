"""The style of the code, tested: import direction, sizes, exported names, start-up time."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import blockllm

PACKAGE = Path(blockllm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# each imports only leftwards
ROOMS = ["workers", "zoo", "chain", "engine", "cluster", "api", "offline", "bench", "cli"]
# the same within the engine
ENGINE = [
    "work", "hidden", "kernels", "kv", "device", "sequence", "batch", "costs", "attention",
    "weights", "layers", "sampling", "run",
    "lanes", "policies", "scheduler", "build", "score", "stats",
    "loop",
]  # fmt: skip
NOUNS = {"core", "errors", "config", "shares"}
FORBIDDEN = {
    "workers": {"torch", "tokenizers", "jinja2", "numpy", "starlette"},
    "zoo": {"torch", "transformers", "peft"},
    "chain": {"torch", "transformers", "peft"},
    "cluster": {"starlette", "uvicorn", "transformers"},
    "engine": {"starlette", "uvicorn", "tokenizers", "jinja2", "transformers", "peft"},
    "api": {"torch", "transformers"},
    "offline": {"transformers", "peft", "starlette"},
    "cli": {"transformers"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_before_it(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    allowed = set(NOUNS) if room not in NOUNS else {"core", "errors"}
    if room in ROOMS:
        allowed |= {*ROOMS[: ROOMS.index(room) + 1], "observability"}
    elif room == "observability":
        allowed |= {"observability"}
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "blockllm" and rest:
            assert rest.split(".")[0] in allowed, f"{path} imports {name}"
        assert top not in FORBIDDEN.get(room, set()), f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine").rglob("*.py")), ids=str)
def test_a_room_of_the_engine_imports_only_what_lies_before_it(path: Path) -> None:
    room = path.relative_to(PACKAGE / "engine").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in imports(path):
        if name.startswith("blockllm.engine."):
            other = name.split(".")[2]
            assert other in ENGINE[: ENGINE.index(room) + 1], f"{path} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    graph = {
        name: [
            other
            for other in imports(PACKAGE.parent / (name.replace(".", "/") + ".py"))
            if other in names
        ]
        for name in names
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_files_are_small() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert max(lengths) <= 400
    assert statistics.median(lengths) <= 100
    assert statistics.quantiles(lengths, n=10)[-1] <= 250


def test_functions_are_short() -> None:
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    assert statistics.quantiles(lengths, n=10)[-1] <= 30
    assert max(lengths) <= 60


def test_exported_names_exist_and_are_documented() -> None:
    for name in blockllm.__all__:
        assert getattr(blockllm, name).__doc__, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path}: no module docstring"
    for node in tree.body:
        is_thing = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_thing and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_nothing_unsafe_is_called() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not imports(path) & {"pickle", "cloudpickle", "marshal", "shelve", "dill"}, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
        assert "torch.load(" not in text and "recv_pyobj" not in text, path


# the zoo's own files, which its other files keep
OF_THE_ZOO = {
    "arrays", "assets", "catalog", "folder", "packs", "room", "staging", "unwritable",
    "verification",
}  # fmt: skip
OPENING = {"open", "fdopen", "from_file", "read_bytes", "read_file", "read_text", "safe_open"}


def test_only_one_file_opens_those_of_a_checkpoint() -> None:
    """It checks what it opens; another would wait for a pipe or follow a link out."""
    for path in (PACKAGE / "zoo").rglob("*.py"):
        if path.stem == "foreign" and path.parent.name == "zoo":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            is_ours = isinstance(node.func, ast.Name) and name == "read_bytes"
            if name in OPENING and not is_ours:
                assert path.stem in OF_THE_ZOO, f"{path}:{node.lineno}: {name}: use zoo/foreign.py"


def test_help_starts_quickly_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from blockllm.cli import main; sys.argv = ['blockllm', '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'starlette', 'tokenizers', 'numpy', 'zmq'}\n"
        "heavy |= {'aiohttp', 'matplotlib'}\n"
        "print('heavy:', heavy & set(sys.modules))"
    )
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        best = min(best, time.perf_counter() - start)
    assert "heavy: set()" in out.stdout, out.stdout + out.stderr
    assert "Usage" in out.stdout
    print(f"blockllm --help: {best:.2f} s")
