"""GPU kernels are tested on a GPU if there is one, else on the CPU under Triton's interpreter,
which has to be chosen before triton is imported."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from blockllm.engine.kernels import gpu
from blockllm.engine.kernels.cpu import native

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "triton was imported before its interpreter was chosen"
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run in this session."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernels take every tensor, those of the CPU (interpreted) too."""
    monkeypatch.setattr(native, "usable", lambda x: False)
    monkeypatch.setattr(gpu, "usable", lambda x: True)
