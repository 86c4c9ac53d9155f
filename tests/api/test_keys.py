from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.api.keys import KeyRing, own_key, read_keys, salt_of
from blockllm.errors import ConfigError


def test_keys_belong_to_tenants_and_are_kept_as_digests(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# our keys\nacme:k1\n\nacme:k2\nk3\n")
    keys = read_keys("solo\nother:k4", str(file))
    assert keys.tenant_of(b"k1") == keys.tenant_of(b"k2") == "acme"
    assert keys.tenant_of(b"k4") == "other"
    anonymous = {keys.tenant_of(b"k3"), keys.tenant_of(b"solo")}
    assert len(anonymous) == 2
    assert None not in anonymous
    for wrong in (b"", b"k", b"acme:k1", b"nobody"):
        assert keys.tenant_of(wrong) is None
    assert "k1" not in repr(vars(keys))


def test_no_keys_means_no_ring():
    assert not read_keys("", "")


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_a_key_file_without_keys_is_an_error(tmp_path: Path, text: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys("", str(tmp_path / "keys"))


def test_bad_keys_are_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match="empty key"):
        KeyRing(["acme:"])
    with pytest.raises(ConfigError) as caught:
        read_keys("", str(tmp_path / "missing"))
    assert str(caught.value) == f"api_key_file {tmp_path / 'missing'}: No such file or directory"


def test_a_key_is_the_bytes_of_its_text(tmp_path: Path):
    (tmp_path / "keys").write_text("t:schlüssel\n", encoding="utf-8")
    assert read_keys("", str(tmp_path / "keys")).tenant_of("schlüssel".encode()) == "t"
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(os.fsdecode(b"t:\xff"), "")


@pytest.mark.parametrize("keys", ["a\n", "\n", "a\n\nb", " ", "t:"])
def test_a_key_that_was_left_empty_is_an_error(keys: str):
    with pytest.raises(ConfigError, match="empty key"):
        read_keys(keys, "")


@pytest.mark.parametrize("keys", ["t:Xk7,a", "a,b", ","])
def test_a_comma_makes_no_second_key(tmp_path: Path, keys: str):
    with pytest.raises(ConfigError, match="has a comma"):
        read_keys(keys, "")
    (tmp_path / "keys").write_text("t:Xk7,a\n")
    ring = read_keys("", str(tmp_path / "keys"))
    assert ring.tenant_of(b"Xk7,a") == "t"
    assert ring.tenant_of(b"a") is ring.tenant_of(b"Xk7") is None


@pytest.mark.parametrize("file", ["/dev/zero", "pipe"])
def test_what_is_no_file_of_keys_is_an_error_at_once(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=f"api_key_file {file}: not a regular file"):
        read_keys("", file)


def test_a_client_sends_the_first_key_without_its_tenant(tmp_path: Path):
    (tmp_path / "keys").write_text("# ours\nacme:k1\nk2\n")
    assert own_key("", str(tmp_path / "keys")) == "k1"
    assert own_key("solo:k0", str(tmp_path / "keys")) == "k0"
    assert own_key("k", "") == "k"
    assert own_key("", "") == ""


PAIRS = st.tuples(st.text(max_size=8), st.text(max_size=8))


@given(PAIRS, PAIRS)
def test_salts_are_equal_only_for_equal_tenants_and_salts(
    one: tuple[str, str], other: tuple[str, str]
):
    assert (salt_of(*one) == salt_of(*other)) == (one == other)


def test_salts_do_not_run_together():
    assert salt_of("a", "bc") != salt_of("ab", "c")
    assert salt_of("", "") == ""
