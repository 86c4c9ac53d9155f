"""Every reader that campaigns feed, by name; each is made with a folder for its files.

The modules are imported when a target is first made: a fuzzer instruments what they import.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tools.campaigns.oracle import Target

# name → module; each is a function of that name
TARGETS = {
    **dict.fromkeys(("header", "config", "index", "pointer"), "weights"),
    **dict.fromkeys(("adapter_config", "adapter_folder"), "adapters"),
    **dict.fromkeys(("tokenizer", "tokens", "sentencepiece", "vocabulary", "generation"), "texts"),
    **dict.fromkeys(("template", "endless_template"), "templates"),
    **dict.fromkeys(("catalogue_bytes", "catalogue_values", "packs"), "catalogue"),
    **dict.fromkeys(("settings", "size", "keys"), "settings"),
    **dict.fromkeys(("to_agent", "from_agent", "chains"), "messages"),
    **dict.fromkeys(("to_worker", "from_worker"), "workers"),
    "bodies": "bodies",
    "connection": "http",
    "operation": "operations",
}


def make(name: str, scratch: Path) -> Target:
    """The target of this name; raises KeyError for another."""
    module = importlib.import_module(f"tools.campaigns.targets.{TARGETS[name]}")
    target: Target = getattr(module, name)(scratch)
    return target
