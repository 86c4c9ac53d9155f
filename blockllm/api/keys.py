"""API keys and the tenants they belong to. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple

from blockllm.config import read_text
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

    @property
    def tenants(self) -> frozenset[str]:
        """Names of all tenants."""
        return frozenset(self._tenants.values())

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


def check_tenants(names: Iterable[str], keys: KeyRing) -> None:
    """Raise ConfigError for a tenant that has settings and no key: its name is misspelt."""
    for name in names:
        if name not in keys.tenants:
            raise ConfigError(
                f"[tenants.{name}]: no API key belongs to this tenant; give one as `{name}:KEY` "
                "in the file of api_key_file"
            )


def read_keys(keys: str, file: str) -> KeyRing:
    """The keys of the settings `api_key` and `api_key_file`. Raises ConfigError."""
    return KeyRing(read_entries(keys, file))


def own_key(keys: str, file: str) -> str:
    """The key a client sends: the first of the same two settings; "" when there is none."""
    entries = read_entries(keys, file)
    return parse_entry(entries[0]).key if entries else ""


def read_entries(keys: str, file: str) -> list[str]:
    """Those of the setting and then a file's, one per line each; in a file # begins a comment.
    Raises ConfigError for a file that cannot be read or holds no key, and for a comma in the
    setting: it may stand in a key or between two, and a wrong guess would make a weak one."""
    entries = keys.split("\n") if keys else []
    if "," in keys:
        raise ConfigError(
            "api_key: has a comma, which may be part of a key; put several keys, or one with a "
            "comma, into the file of api_key_file, one per line"
        )
    if file:
        lines = read_text(f"api_key_file {file}", file).splitlines()
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
