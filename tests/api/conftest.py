from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockllm.api.models import Models, load_models
from blockllm.api.tokenizer import TextTokenizer
from tests.api.family import FakeZoo, byte_level_tokenizer, sentencepiece_like_tokenizer
from tests.api.serving import RunningServer, running


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fake")
    FakeZoo(path / "zoo")
    return path


@pytest.fixture(scope="session")
def models(folder: Path) -> Models:
    return load_models(FakeZoo(folder / "zoo"), None)


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[RunningServer]:
    with running(folder, max_body_bytes=100_000) as server:
        yield server


@pytest.fixture(scope="session")
def byte_level() -> TextTokenizer:
    return TextTokenizer(byte_level_tokenizer())


@pytest.fixture(scope="session")
def sentencepiece() -> TextTokenizer:
    return TextTokenizer(sentencepiece_like_tokenizer())
