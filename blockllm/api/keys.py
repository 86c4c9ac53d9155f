"""API keys and the tenants they belong to. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from blockllm.errors import ConfigError


class Entry(NamedTuple):
    """`tenant:key` or `key`, taken apart."""

    tenant: str
    key: str


class KeyRing:
    """Keys and their tenants; a key without a tenant is a tenant of its own."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._tenants: dict[bytes, str] = {}
        for tenant, key in map(parse_entry, entries):
            digest = hashlib.sha256(key.encode()).digest()
            self._tenants[digest] = tenant or f"key-{digest.hex()[:16]}"

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant_of(self, key: bytes) -> str | None:
        """The tenant of this key as it was sent; None for an unknown one. Takes equally long for
        every key."""
        digest = hashlib.sha256(key).digest()
        found = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def parse_entry(text: str) -> Entry:
    """Take `tenant:key` or `key` apart. Raises ConfigError for an empty key, or bytes that are no
    text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # of the environment or the command line
        raise ConfigError("API keys: expected UTF-8 text, got other bytes") from error
    tenant, colon, key = text.strip().partition(":")
    if not colon:
        tenant, key = "", tenant
    if not key:
        raise ConfigError("API keys: expected `tenant:key` or `key`, got an empty key")
    return Entry(tenant, key)


def read_keys(keys: str, file: str) -> KeyRing:
    """The keys of the settings `api_key` and `api_key_file`. Raises ConfigError."""
    return KeyRing(read_entries(keys, file))


def own_key(keys: str, file: str) -> str:
    """The key a client sends: the first of the same two settings; "" when there is none."""
    entries = read_entries(keys, file)
    return parse_entry(entries[0]).key if entries else ""


def read_entries(keys: str, file: str) -> list[str]:
    """Comma-separated entries, then a file's, one per line (# comments). Raises ConfigError for a
    file that cannot be read or holds no key."""
    entries = keys.split(",") if keys else []
    if file:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"api_key_file {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"api_key_file {file}: not UTF-8 text") from error
        found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"api_key_file {file}: holds no key")
        entries += found
    return entries


def salt_of(tenant: str, cache_salt: str) -> str:
    """What separates prefixes of different tenants and salts in the engine's index; "" is shared.

    Lengths are part of it, so that ("a", "bc") and ("ab", "c") differ.
    """
    if not tenant and not cache_salt:
        return ""
    text = f"{len(tenant)}:{tenant}{len(cache_salt)}:{cache_salt}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
