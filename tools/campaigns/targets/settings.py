"""What an operator writes: settings files, sizes, and files of API keys."""

from __future__ import annotations

from pathlib import Path

from blockllm.api.keys import KeyRing, own_key, read_entries, read_keys
from blockllm.config import EngineSettings, ServerSettings, load, parse_bytes
from tools.campaigns.documents import put
from tools.campaigns.draws import TEXTS, Draws, flipped
from tools.campaigns.oracle import Target

FILE = b"""[engine]
device = "cpu"
memory = "8GiB"
max_rows = 512
max_turn_seconds = 0.5
prefix_cache = true

[server]
host = "127.0.0.1"
port = 8000
api_key_file = "keys"
allowed_origins = "https://a.example, http://b.example:80"
drain_timeout = 30
max_body_bytes = 4_194_304
"""
NAMES = (*EngineSettings.__struct_fields__, *ServerSettings.__struct_fields__, "engine", "nothing")
VALUES = (
    *("nan", "inf", "-1", "0", "1e400", "9" * 40, "true", '"auto"', '"1e9T"', "[]", "{}", "'é'"),
    *("1979-05-27", "0x10", "0.5", '"99999T"', '"-5M"', '"cuda:1000"', '"\\u0000"', "+1_000"),
    *('"nanG"', '"infT"', '"1e308T"', '"https://*"', '"x,y"', '""', "2**9", "1.5", "+nan"),
)
KEYS = "# keys\nalice:k-1\n\nbob:k2:x\nplain-key\n  # another\n é:ü\n".encode()


def settings(scratch: Path) -> Target:
    """A settings file, for the engine and for the server."""
    path = scratch / "settings.toml"

    def run(data: bytes) -> None:
        draws = Draws(data)
        put(path, _settings_file(draws))
        section = draws.pick(("engine", "server"))
        load(EngineSettings if section == "engine" else ServerSettings, section, str(path), {})

    lines = [bytes([1, *range(i, i + 12)]) for i in range(0, 64, 4)]
    return Target((b"\0" + FILE, b"\2\1\2\3\4\5", *lines), run, 1024)


def _settings_file(draws: Draws) -> bytes:
    kind = draws.below(3)
    if kind == 0:
        return draws.rest()
    if kind == 2:
        return flipped(FILE, draws)
    lines = FILE.decode().splitlines()
    for _ in range(1 + draws.below(4)):
        line = f"{draws.pick(NAMES)} = {draws.pick(VALUES)}"
        lines.insert(draws.below(len(lines) + 1), line)
    return "\n".join(lines).encode()


def size(_scratch: Path) -> Target:
    """A size of memory as an operator writes it."""

    def run(data: bytes) -> None:
        assert parse_bytes(data.decode("utf-8", "replace")) > 0

    return Target((b"8GiB", b"800M", b"1e3", b" 5 t ", b"nan", b"1_0k"), run, 64)


def keys(scratch: Path) -> Target:
    """The setting of keys and the file of keys; a key that a client sends."""
    path = scratch / "keys"

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind, given = draws.below(3), draws.pick(("", "a", "t:b", ",", "a,b", *TEXTS))
        sent = draws.take(draws.below(12))
        put(path, draws.rest() if kind else flipped(KEYS, draws))
        ring = read_keys(given, str(path) if kind < 2 else "")
        assert isinstance(ring, KeyRing)
        ring.tenant_of(sent)
        if read_entries(given, ""):
            own_key(given, "")

    return Target((b"\1\0\0\0" + KEYS, b"\0\2\1\3\1\2\3", b"\2\3\2\0"), run, 512)
