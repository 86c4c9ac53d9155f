"""Text for the demonstration family, taken from the standard library every machine has."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

GENERAL = "general"
TOPICS = "topics"

EXCLUDED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "encodings",
    "__phello__",
}
# Tables of numbers, and files that a build writes with its own machine's paths in them.
EXCLUDED_FILES = re.compile(
    r"_sysconfigdata.*|config-.*|html/entities\.py|stringprep\.py|sre_constants\.py"
    r"|msilib/.*|pydoc_data/.*"
)

# First path part (without ".py") -> domain; every other file is general text.
CODE_DOMAINS: dict[str, str] = {
    "network": "email http urllib xmlrpc wsgiref smtplib ftplib imaplib nntplib poplib telnetlib "
    "socket ssl socketserver mailbox cgi smtpd mimetypes netrc",
    "interface": "tkinter turtle turtledemo curses",
    "concurrency": "asyncio concurrent threading _threading_local multiprocessing queue sched "
    "selectors asyncore asynchat contextvars",
}
DOMAINS = (GENERAL, TOPICS, *CODE_DOMAINS)


@dataclass(frozen=True)
class Split:
    """One domain's documents to train on, and the text kept aside from all training."""

    train: list[str]
    heldout: str


def _domain_of(relative: Path) -> str:
    first = relative.parts[0].removesuffix(".py")
    return next((name for name, parts in CODE_DOMAINS.items() if first in parts.split()), GENERAL)


def _read_code() -> dict[str, dict[str, str]]:
    """Every kept source file by domain, then by its path inside the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, dict[str, str]] = {name: {} for name in DOMAINS}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        name = relative.as_posix()
        if EXCLUDED_FOLDERS & set(relative.parts) or EXCLUDED_FILES.fullmatch(name):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore").replace("\t", "    ").strip()
        if text:
            found[_domain_of(relative)][name] = text + "\n"
    return found


def _read_topics() -> dict[str, str]:
    """The language reference's topics, as prose."""
    from pydoc_data import topics

    return {name: text.strip() + "\n" for name, text in sorted(topics.topics.items())}


def _choose_heldout(documents: dict[str, str], wanted: int) -> list[str]:
    """Names of mid-sized documents, in an order fixed by a hash, up to the wanted bytes."""
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen: list[str] = []
    total = 0
    for name in order:
        size = len(documents[name])
        if 1_500 <= size <= wanted // 3 and total + size <= wanted:
            chosen.append(name)
            total += size
    return sorted(chosen)


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _without(text: str, forbidden: set[str]) -> str:
    """The text less the paragraphs also found in held-out text: topics repeat one another."""
    if not any(_key(part) in forbidden for part in _paragraphs(text)):
        return text
    pieces = re.split(r"(\n\s*\n)", text)
    return "".join(piece for piece in pieces if _key(piece) not in forbidden or not piece.strip())


def load_splits(heldout_bytes: int = 36_000, every: int = 1) -> dict[str, Split]:
    """Every domain's split; no held-out paragraph is left in any domain's training text.

    With ``every`` above 1 only each such document is kept, for a quick trial.
    """
    documents = _read_code()
    documents[TOPICS] = _read_topics()
    chosen = {name: _choose_heldout(documents[name], heldout_bytes) for name in DOMAINS}
    heldout = {
        name: "\n\n".join(documents[name][item] for item in chosen[name]) for name in DOMAINS
    }
    forbidden = {
        _key(part)
        for text in heldout.values()
        for part in _paragraphs(text)
        if len(_key(part)) > 40
    }
    splits = {}
    for name in DOMAINS:
        kept = [text for item, text in documents[name].items() if item not in chosen[name]][::every]
        splits[name] = Split([_without(text, forbidden) for text in kept], heldout[name])
    return splits
