"""Says where the versions that are installed differ from the pinned ones: `python -m tools.versions
constraints.txt`, run by the interpreter whose packages are meant."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def read_pins(lines: Iterable[str]) -> dict[str, Version]:
    """Package name → pinned version, of the lines that apply to this Python and platform."""
    pins = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                pins[canonicalize_name(requirement.name)] = Version(pin.version)
    return pins


def installed() -> dict[str, Version]:
    """Package name → version, of this interpreter's packages."""
    return {canonicalize_name(each.name): Version(each.version) for each in distributions()}


def differences(pins: dict[str, Version], found: dict[str, Version]) -> list[str]:
    """A line for each package whose public version is not the pinned one; packages that only one
    side has are left out, since extras and platforms decide about them."""
    return [
        f"{name}: {pins[name]} pinned, {found[name]} here"
        for name in sorted(pins.keys() & found.keys())
        if pins[name].public != found[name].public
    ]


def main() -> None:
    """Print the differences, or that there are none."""
    pins = read_pins(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    print("\n".join(differences(pins, installed())) or "all versions are the pinned ones")


if __name__ == "__main__":
    main()
