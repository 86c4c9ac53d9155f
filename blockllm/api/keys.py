"""API keys and the tenants they belong to. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from blockllm.errors import ConfigError


class KeyRing:
    """Keys are `tenant:key` or `key`; a key without a tenant is a tenant of its own."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._tenants: dict[bytes, str] = {}
        for entry in entries:
            tenant, colon, key = entry.strip().partition(":")
            if not colon:
                tenant, key = "", tenant
            if not key:
                raise ConfigError(
                    "api keys: expected lines `tenant:key` or `key`, got an empty key"
                )
            digest = hashlib.sha256(key.encode()).digest()
            self._tenants[digest] = tenant or f"key-{digest.hex()[:16]}"

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant_of(self, key: str) -> str | None:
        """Whose key this is; None when nobody's. Takes the same time whichever it is."""
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def read_keys(keys: str, file: str) -> KeyRing:
    """Keys of the settings: comma-separated ones, and a file with one per line (# comments)."""
    entries = [key for key in keys.split(",") if key.strip()]
    if file:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file {file}: {error}") from error
        entries += [line for line in lines if line.strip() and not line.startswith("#")]
        if not entries:
            raise ConfigError(f"api_key_file {file}: holds no key")
    return KeyRing(entries)


def salt_of(tenant: str, cache_salt: str) -> str:
    """What separates prefixes of different tenants and salts in the engine's index; "" is shared.

    Lengths are part of it, so that ("a", "bc") and ("ab", "c") differ.
    """
    if not tenant and not cache_salt:
        return ""
    text = f"{len(tenant)}:{tenant}{len(cache_salt)}:{cache_salt}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
