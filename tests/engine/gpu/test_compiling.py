"""The kernels compile for real GPUs, at real sizes, within their shared memory: no GPU needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [("90", "bfloat16")])
def test_kernels_compile(capability: str, dtype: str, tmp_path: Path) -> None:
    """In a process of its own, since this one may interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.gpu.compiling", capability, dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert "_prefill_kernel" in done.stdout and "_expand_kernel" in done.stdout
