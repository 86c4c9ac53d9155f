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
from pathlib import Path

from blake3 import blake3

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
_TIMEOUT = 300  # seconds; a build takes about ten
# Arguments of each kernel: p(ointer), i(nt64), f(loat); the number of threads follows them all.
_SIGNATURES = {
    "linear_pack": "ppiii",
    "linear_run": "pipipippiii",
    "int8_pack": "pppiii",
    "int8_run": "pipipppppiii",
    "delta_run": "pipiipipiip",
    "lora_run": "pipipip",
    "layers_run": "ppipipppipipipi",
    "paged_decode": "ppipiipipiiiiiif",
    "paged_prefill": "pipipiipipiiiiiif",
    "rotate_and_write": "pppppiippiiiii",
    "rms_norm": "pppiiiiif",
    "silu_multiply": "ppii",
    "best_rows": "pppiii",
    "draw_rows": "ppippppppii",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The kernels, built if need be; None if there is no working C++ compiler (a warning says
    what to install). torch must have been imported before, so that both share one OpenMP pool."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++"))), "")
    if not compiler:
        LOG.warning("no C++ compiler found: slower plain kernels are used; install g++")
        return None
    try:
        return _declare(ctypes.CDLL(str(_build(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error))[:_SHOWN]
        LOG.warning("building the CPU kernels failed, plain ones are used: %s", detail)
        return None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [*(_TYPES[kind] for kind in signature), ctypes.c_int]
        function.restype = None
    return library


def _build(compiler: str) -> Path:
    source = b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_TIMEOUT)
    identity = source + version.stdout + " ".join(_FLAGS).encode() + _cpu()
    library = _cache_folder() / f"cpu-{blake3(identity).hexdigest(16)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command = [compiler, *_FLAGS, *map(str, SOURCES), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
            os.replace(built, library)
    return library


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
