"""Build the CPU kernels with the machine's own compiler, once, into the user's cache."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from blockllm.engine.kernels.cpu.structs import check_layouts

LOG = logging.getLogger(__name__)
SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",  # else GCC does not vectorise a choice of lanes without masks
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-fopenmp",
)
_SHOWN = 600  # characters of the compiler's complaint; it can be very long
_UNFINISHED = "unfinished-"  # what the folder of a build in the cache begins with
_TIMEOUT = 300  # seconds; a build takes about ten
# Arguments of each kernel: p(ointer), i(nt64), f(loat); the number of threads follows them all.
_SIGNATURES = {
    "linear_pack": "ppiii",
    "linear_run": "pipipippiii",
    "int8_pack": "pppiii",
    "int8_run": "pipipppppiii",
    "delta_run": "pipiipipiip",
    "lora_run": "pipipip",
    "program_run": "ppippipipipi",
    "paged_decode": "ppipiipipiiiiiif",
    "paged_prefill": "pipipiipipiiiiiif",
    "rotate_and_write": "pppppiippiiiii",
    "rms_norm": "pppiiiiif",
    "silu_multiply": "ppii",
    "best_rows": "pppiii",
    "draw_rows": "ppippppppii",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class Compiler(NamedTuple):
    """A compiler's program and what it needs beside the flags to link C++."""

    program: tuple[str, ...]
    libraries: tuple[str, ...]


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The kernels, built if need be; None if there is no working C++ compiler (a warning says
    what was tried). torch must have been imported before, so that both share one OpenMP pool."""
    tried = []
    for compiler in _compilers():
        try:
            return _open(compiler)
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip()[:_SHOWN]
            tried.append(f"{' '.join(compiler.program)}: {detail}")
    what = "; ".join(tried) or f"no C++ compiler found ({', '.join(_names())}); install g++"
    LOG.warning("the CPU kernels could not be built, slower plain ones are used: %s", what)
    return None


def is_built() -> bool:
    """Whether the kernels lie in the cache, so that `native_library` need not build them."""
    try:
        return any(_is_sound(_library_of(compiler)) for compiler in _compilers()[:1])
    except (OSError, subprocess.SubprocessError):
        return False


def _names() -> list[str]:
    """What may be a compiler, in the order tried: what CXX says, then the usual names."""
    return [*filter(None, [os.environ.get("CXX", "").strip()]), "c++", "g++", "clang++"]


def _compilers() -> list[Compiler]:
    found: dict[str, Compiler] = {}  # by resolved program: c++ often is g++
    for name in _names():
        program, *options = name.split()
        path = shutil.which(program)
        if path is None:
            continue
        # a driver for C compiles C++ but does not link its library
        words = [word for word in (program, *options) if not word.startswith("-")]
        is_cpp = any("++" in Path(word).name for word in words)
        libraries = () if is_cpp else ("-lstdc++", "-lm")
        key = " ".join([os.path.realpath(path), *options, *libraries])
        found.setdefault(key, Compiler((path, *options), libraries))
    return list(found.values())


def _open(compiler: Compiler) -> ctypes.CDLL:
    """The kernels of this compiler: a cached build if it can be loaded, else a new one."""
    library = _library_of(compiler)
    if library.exists():
        try:
            if _is_sound(library):
                return _declare(ctypes.CDLL(str(library)))
            LOG.warning("%s is damaged: it is built again", library)
        except (OSError, AttributeError) as error:
            LOG.warning("%s cannot be loaded (%s): it is built again", library, error)
    _build(compiler, library)
    return _declare(ctypes.CDLL(str(library)))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [*(_TYPES[kind] for kind in signature), ctypes.c_int]
        function.restype = None
    check_layouts(library)
    return library


def _library_of(compiler: Compiler) -> Path:
    """Where this compiler's build of these sources for this processor lies, or will."""
    source = b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))
    command = [*compiler.program, "--version"]
    version = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=True)
    flags = " ".join([*compiler.program[1:], *_FLAGS, *compiler.libraries])
    identity = b"with a digest file" + source + version.stdout + flags.encode() + _cpu()
    return _cache_folder() / f"cpu-{blake3(identity).hexdigest(16)}.so"


def _build(compiler: Compiler, library: Path) -> None:
    """Compile, see that it can be loaded, and only then put it into the cache."""
    program = " ".join(compiler.program)
    # a warning, so that a command which shows no log says why it takes so long
    LOG.warning("building the CPU kernels with %s (once per machine, up to a minute)", program)
    started = time.monotonic()
    _drop_leavings(library.parent)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [*compiler.program, *_FLAGS, *map(str, SOURCES), "-o", str(built)]
        command += compiler.libraries
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
        _declare(ctypes.CDLL(str(built)))
        digest = Path(folder) / "digest"
        digest.write_text(_digest(built), encoding="ascii")
        os.replace(built, library)
        os.replace(digest, _digest_file(library))
    LOG.info("built the CPU kernels in %.1f s", time.monotonic() - started)


def _drop_leavings(cache: Path) -> None:
    """Remove what builds left that were killed; a build of now is younger than the timeout."""
    for folder in cache.glob(f"{_UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > _TIMEOUT:
            shutil.rmtree(folder, ignore_errors=True)


def _is_sound(library: Path) -> bool:
    """Whether the file is what was built; a damaged one may end the process that loads it."""
    try:
        return _digest_file(library).read_text(encoding="ascii") == _digest(library)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(library: Path) -> str:
    return str(blake3(library.read_bytes()).hexdigest())


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".blake3")


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache) / "blockllm" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _cpu() -> bytes:
    """What `-march=native` depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith("flags")), "").encode()
