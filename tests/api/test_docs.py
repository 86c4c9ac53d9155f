"""The documents name every setting, route, field, limit and metric there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from blockllm.api import fields, wire
from blockllm.api.app import all_routes
from blockllm.api.models import Models
from blockllm.api.serving import Serving
from blockllm.cli.serve import serve
from blockllm.config import EngineSettings, ServerSettings, TenantSettings, settings_of
from blockllm.observability import names
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats
from tests.api.test_auth import InstantAgent

DOCS = Path(__file__).parents[2] / "docs"
API = (DOCS / "api.md").read_text()


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("engine", EngineSettings),
        ("server", ServerSettings),
        ("tenants.NAME", TenantSettings),
    ],
)
def test_settings_are_documented_with_their_defaults(section: str, kind: type[msgspec.Struct]):
    text = (DOCS / "settings.md").read_text()
    part = text.partition(f"## `[{section}]`")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", part, re.M)
    documented = {name: default.strip("`") for name, default in rows}
    actual = {}
    for field in msgspec.structs.fields(kind):
        if field.name not in settings_of(kind):
            continue
        default = "none" if field.default == "" else str(field.default)
        actual[field.name] = default.lower() if isinstance(field.default, bool) else default
    assert documented == actual


def test_routes_are_documented(models: Models):
    metrics = ServerMetrics(lambda: (EngineStats(), True, 0))
    serving = Serving(ServerSettings(), models, InstantAgent(), metrics)
    routes = {
        f"{min(route.methods or ())} {route.path.replace(':path', '')}"
        for route in all_routes(serving)
    }
    assert set(re.findall(r"^\| `((?:GET|POST) [^`]+)`", API, re.M)) == routes


def test_request_fields_are_documented():
    implemented = {*wire.ChatRequest.__struct_fields__, *wire.CompletionRequest.__struct_fields__}
    part = API.partition("## Fields of other servers")[2].partition("\n## ")[0]
    refused, ignored = (
        set(re.findall(r"`(\w+)`", text)) for text in part.split("Accepted and without effect")
    )
    assert set(fields.REFUSED) <= refused
    assert ignored >= fields.IGNORED
    missing = {field for field in implemented if f"`{field}`" not in API}
    assert missing <= {"messages", "prompt"}


def test_metrics_are_documented():
    declared = {value.name for value in vars(names).values() if isinstance(value, names.Metric)}
    assert set(re.findall(r"^\| `(blockllm_\w+)`", API, re.M)) == declared


def test_variables_and_options_of_serve_in_the_pages_exist():
    kinds: tuple[type[msgspec.Struct], ...] = (EngineSettings, ServerSettings)
    settings = [name for kind in kinds for name in settings_of(kind)]
    variables = {f"BLOCKLLM_{name.upper()}" for name in settings}
    variables |= {"BLOCKLLM_ZOO", "BLOCKLLM_BENCH_KEYS"}
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    assert set(re.findall(r"BLOCKLLM_[A-Z_]+", text)) <= variables
    for command in re.findall(r"^blockllm serve(.*)$", text, re.M):
        assert set(re.findall(r"--[a-z-]+", command)) <= options, command
