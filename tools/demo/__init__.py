"""The demonstration family: where its files lie, and which of them `make demo` serves."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ROOT / "demo"
# member of the family → the model that it is an adapter of
MODELS = {"base": None, "frozen-lower": None, "full": None, "lora-a": "base", "lora-b": "base"}
