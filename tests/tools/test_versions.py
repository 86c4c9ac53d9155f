"""The pinned versions: what they cover, and how differences are said."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.versions import differences, read_pins

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_pinned_to_a_version_that_pyproject_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    pins = read_pins((ROOT / "constraints.txt").read_text().splitlines())
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate():
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_pins_of_other_platforms_are_left_out() -> None:
    lines = ["# made by a tool", "", "a==1.0", "b==2 ; sys_platform == 'nowhere'"]
    assert read_pins(lines) == {"a": Version("1.0")}


def test_differences_name_both_versions_and_pass_over_local_builds() -> None:
    pins = {"a": Version("1.0"), "torch": Version("2.13.0"), "absent": Version("1")}
    found = {"a": Version("1.1"), "torch": Version("2.13.0+cpu"), "other": Version("3")}
    assert differences(pins, found) == ["a: 1.0 pinned, 1.1 here"]
