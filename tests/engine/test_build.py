"""Building the CPU kernels: which compiler, what is cached, what is said when it fails."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blockllm.engine.kernels.cpu import build

SOURCE = """
extern "C" void answer(int threads) {
    try { throw threads; } catch (int) {}  // what throws needs C++'s library
}
"""
Opened = Callable[[], ctypes.CDLL | None]

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a small library instead of the kernels, in a cache of its own."""
    (tmp_path / "answer.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCES", [tmp_path / "answer.cpp"])
    monkeypatch.setattr(build, "HEADERS", [])
    monkeypatch.setattr(build, "_SIGNATURES", {"answer": ""})
    monkeypatch.setattr(build, "check_layouts", lambda library: None)  # it has no structs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return build.native_library.__wrapped__


def cached(tmp_path: Path) -> Path:
    (library,) = (tmp_path / "cache").rglob("*.so")
    return library


def works(library: ctypes.CDLL | None) -> bool:
    assert library is not None
    library.answer(3)
    return True


@needs_compiler
def test_a_build_is_said_once_and_kept(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    assert not build.is_built()
    assert works(opened())
    assert "building the CPU kernels with" in caplog.text and "once per machine" in caplog.text
    assert build.is_built()
    made = cached(tmp_path).stat().st_mtime_ns
    caplog.clear()
    assert works(opened())
    assert (caplog.text, cached(tmp_path).stat().st_mtime_ns) == ("", made)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_a_driver_for_c_links_the_cpp_library(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", "gcc")
    assert build._compilers()[0].libraries == ("-lstdc++", "-lm")
    caplog.set_level(logging.INFO)
    assert works(opened())
    assert "gcc" in caplog.text and "built the CPU kernels" in caplog.text


@needs_compiler
@pytest.mark.parametrize("digest", [None, "that of something else", "its own"])
def test_a_cached_build_that_cannot_be_loaded_is_built_again(
    opened: Opened, caplog: pytest.LogCaptureFixture, digest: str | None
):
    library = build._library_of(build._compilers()[0])
    library.write_bytes(b"\x7fELF, and then the disk was full")
    if digest is not None:
        own = build._digest(library)
        build._digest_file(library).write_text(own if digest == "its own" else digest)
    assert works(opened())
    assert f"{library} " in caplog.text and "built again" in caplog.text
    assert build.is_built()


@needs_compiler
def test_what_killed_builds_left_is_removed(opened: Opened, tmp_path: Path):
    cache = build._cache_folder()
    old, young = cache / "unfinished-old", cache / "unfinished-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "part.o").touch()
    os.utime(old, (0, 0))
    assert works(opened())
    assert (old.exists(), young.exists()) == (False, True)


def test_without_a_compiler_it_is_said_what_was_looked_for(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "my-compiler")
    assert opened() is None
    assert "no C++ compiler found (my-compiler, c++, g++, clang++); install g++" in caplog.text


@needs_compiler
def test_a_compiler_that_fails_is_followed_by_the_next(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\necho cannot do it >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert works(opened())


def test_a_failed_build_says_what_was_tried(
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    for name in ("c++", "g++"):
        script = '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no cc1plus" >&2\nexit 1\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nonexistent")
    assert opened() is None
    for name in ("c++", "g++"):
        assert f"{tmp_path / name}: no cc1plus" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))
