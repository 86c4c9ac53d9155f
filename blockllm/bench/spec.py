"""A comparison as its TOML file says it: arms, loads, and how often; docs/bench.md has examples."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from blockllm.bench.draws import Arrival
from blockllm.bench.metrics import Slo
from blockllm.bench.workload import Workload, check
from blockllm.errors import ConfigError

Resident = Literal["together", "alone"]


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One load point. The fields of a workload, and: requests sent before measuring, an SLO, and
    the machine's limit in output tokens/s to print beside what was reached."""

    name: str
    models: tuple[str, ...]
    requests: int = 32
    concurrency: int = 0
    rate: float = 0.0
    arrival: Arrival = "poisson"
    burstiness: float = 4.0
    prompt_length: str = "128"
    output_length: str = "64"
    popularity: str = "uniform"
    shared_prefix: str = ""
    token_range: str = "100:1000"
    text_prompts: bool = False
    warm_up: int = 4
    slo: Slo | None = None
    limit: float | None = None

    def workload(self, seed: int) -> Workload:
        """What to ask, with this seed."""
        own = msgspec.structs.asdict(self)
        fields = {name: own[name] for name in Workload.__struct_fields__ if name in own}
        return Workload(**fields, seed=seed)


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every kind of arm has. Arms of one `exact_group` must give equal outputs; `models` says
    what the arm calls a model of the loads, where that differs; `extra_body` goes into every
    request; `token_ids` asks for ids, to compare them instead of text."""

    name: str
    exact_group: str = ""
    models: dict[str, str] = {}
    extra_body: dict[str, Any] = {}
    token_ids: bool = False
    env: dict[str, str] = {}


class BlockllmArm(Arm, frozen=True, kw_only=True, tag_field="kind", tag="blockllm"):
    """One `blockllm serve` with the models of all loads; `flags` are added to its command line."""

    zoo: str
    flags: list[str] = []


class SharedParametersArm(
    Arm, frozen=True, kw_only=True, tag_field="kind", tag="shared-parameters"
):
    """`blockllm serve` where every batch holds one model's rows: weights shared, blocks not
    batched."""

    zoo: str
    flags: list[str] = []


class PerModelArm(Arm, frozen=True, kw_only=True, tag_field="kind", tag="per-model"):
    """One `blockllm serve` per model, each with its threads and memory."""

    zoo: str
    threads: int = 0
    memory: str = ""
    flags: list[str] = []


class TransformersArm(Arm, frozen=True, kw_only=True, tag_field="kind", tag="transformers"):
    """Static batches of transformers' generate; `paths` says where each model's checkpoint is."""

    paths: dict[str, str]
    max_batch: int = 32
    threads: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class CommandArm(Arm, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """Any server. `{port}` in `command` and `env` becomes a free port; with `per_model` there is
    one process per model, and `{model}` and `{path}` become its name and its entry in `paths`."""

    command: list[str]
    ready: str = "/health"
    per_model: bool = False
    paths: dict[str, str] = {}


class UrlArm(Arm, frozen=True, kw_only=True, tag_field="kind", tag="url"):
    """A server that is running already."""

    url: str


AnyArm = BlockllmArm | SharedParametersArm | PerModelArm | TransformersArm | CommandArm | UrlArm


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole comparison. `reference` names the arm that ratios divide by; `resident` says
    whether all arms stay started (frozen while another one runs) or one at a time. A pair is
    measured again if the host of a virtual machine took more than `most_stolen` of its time."""

    arm: tuple[AnyArm, ...]
    load: tuple[Load, ...]
    name: str = "comparison"
    reference: str = ""
    pairs: int = 5
    seed: int = 0
    resident: Resident = "together"
    most_stolen: float = 1.0
    timeout: float = 600.0
    ready_timeout: float = 600.0
    set: dict[str, str | int | float] = {}

    @property
    def reference_arm(self) -> str:
        return self.reference or self.arm[0].name

    @property
    def models(self) -> list[str]:
        """Models of all loads."""
        return list(dict.fromkeys(model for load in self.load for model in load.models))


def read_spec(path: Path, variables: Mapping[str, str]) -> Spec:
    """Read, fill in `${name}` from `variables` and the file's `[set]`, check.

    Raises ConfigError naming the table, the key and what was expected.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"spec {path}: {error}") from error
    defaults = document.get("set", {})
    values = {**(defaults if isinstance(defaults, dict) else {}), **variables}
    try:
        spec = msgspec.convert(_fill(document, values), Spec, strict=False)
        _check(spec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"spec {path}: {_in_words(str(error), document)}") from error
    except ConfigError as error:
        raise ConfigError(f"spec {path}: {error}") from error
    return spec


def select(
    spec: Spec,
    arms: Sequence[str],
    loads: Sequence[str],
    pairs: int | None = None,
    resident: Resident | None = None,
    most_stolen: float | None = None,
) -> Spec:
    """The spec with these arms and loads only (all if none are named), and what else is given
    instead of its own. Raises ConfigError."""
    for table, wanted, entries in (("arm", arms, spec.arm), ("load", loads, spec.load)):
        unknown = set(wanted) - {entry.name for entry in entries}
        if unknown:
            raise ConfigError(f'[[{table}]]: there is none called "{min(unknown)}"')
    kept = tuple(arm for arm in spec.arm if not arms or arm.name in arms)
    selected = msgspec.structs.replace(
        spec,
        arm=kept,
        load=tuple(load for load in spec.load if not loads or load.name in loads),
        reference=spec.reference if spec.reference in [arm.name for arm in kept] else "",
        pairs=spec.pairs if pairs is None else pairs,
        resident=resident or spec.resident,
        most_stolen=spec.most_stolen if most_stolen is None else most_stolen,
    )
    _check(selected)
    return selected


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_fill(each, values) for each in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"${{{match[1]}}} has no value: give --set {match[1]}=…")
        return str(values[match[1]])

    return re.sub(r"\$\{(\w+)\}", fill, value)


def _in_words(message: str, document: dict[str, Any]) -> str:
    """`Expected `int`, got `str` - at `$.arm[1].threads`` as `[[arm]] 2 ("vllm"), threads: …`."""
    problem, _, place = message.partition(" - at `$")
    found = re.fullmatch(r"\.(\w+)\[(\d+)\]\.?(.*)", place.rstrip("`"))
    if not found:
        key = place.rstrip("`").lstrip(".")
        return f"{key}: {problem}" if key else problem
    table, index, key = found[1], int(found[2]), found[3]
    entry = document[table][index]
    name = f' ("{entry["name"]}")' if isinstance(entry, dict) and "name" in entry else ""
    return f"[[{table}]] {index + 1}{name}{', ' + key if key else ''}: {problem}"


def _check(spec: Spec) -> None:
    if not spec.arm or not spec.load:
        raise ConfigError("at least one [[arm]] and one [[load]] are needed")
    for table, entries in (("arm", spec.arm), ("load", spec.load)):
        names = [entry.name for entry in entries]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f'[[{table}]], name: "{twice[0]}" is there twice')
    if spec.reference_arm not in [arm.name for arm in spec.arm]:
        raise ConfigError(f'reference: no arm is called "{spec.reference_arm}"')
    if spec.pairs < 1:
        raise ConfigError(f"pairs: expected 1 or more, got {spec.pairs}")
    if not 0 <= spec.most_stolen <= 1:
        raise ConfigError(f"most_stolen: expected a share from 0 to 1, got {spec.most_stolen}")
    for load in spec.load:
        try:
            check(load.workload(spec.seed))
            if not (load.rate or load.concurrency):
                raise ConfigError("concurrency or rate: one of them must be given")
        except ConfigError as error:
            raise ConfigError(f'[[load]] "{load.name}", {error}') from error
    for arm in spec.arm:
        wants_paths = isinstance(arm, TransformersArm)
        if isinstance(arm, CommandArm):
            wants_paths = arm.per_model and any("{path}" in word for word in arm.command)
        known = arm.paths if isinstance(arm, TransformersArm | CommandArm) else {}
        missing = [model for model in spec.models if wants_paths and model not in known]
        if missing:
            raise ConfigError(f'[[arm]] "{arm.name}", paths: no entry for "{missing[0]}"')
