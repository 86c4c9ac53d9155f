"""What the zoo's operations report, and how they tell their progress."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

# called with what is being done, units done and units in total (bytes; 0 when unknown)
Progress = Callable[[str, int, int], None]


def silent(activity: str, done: int, total: int) -> None:
    """Takes progress and shows nothing."""


class AddReport(msgspec.Struct, frozen=True):
    """What adding a model took. `stored_bytes` were written; the rest was in the zoo already.
    `notes` are sentences about what the user should know of the files.
    """

    name: str
    total_bytes: int
    stored_bytes: int
    num_blocks: int
    num_shared_blocks: int
    seconds: float
    notes: tuple[str, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """One damaged file or catalogue row, and the models that need it."""

    where: str
    what: str
    models: tuple[str, ...]


class VerifyReport(msgspec.Struct, frozen=True):
    """What was checked, and everything that is not what its name says."""

    num_packs: int
    num_tensors: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


class GcReport(msgspec.Struct, frozen=True):
    """What was removed because no model needs it."""

    num_files: int
    num_bytes: int
    num_tensors: int
