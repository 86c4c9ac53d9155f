"""Reading a catalogue beside which SQLite can make no file: on a read-only or on a full disk."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockllm.errors import ZooError


@contextmanager
def address_without_files(catalog: Path) -> Iterator[str]:
    """An address by which SQLite reads the catalogue and makes no file beside it; writers wait
    meanwhile. A log that a killed writer left is read with a copy in the machine's temporary
    folder. Raises ZooError while a writer is at work, and OSError.
    """
    log = catalog.with_name(f"{catalog.name}-wal")
    with _without_writers(catalog.with_name("lock")):
        if not log.exists() or not log.stat().st_size:
            yield f"{catalog.as_uri()}?mode=ro&immutable=1"
            return
        with tempfile.TemporaryDirectory(prefix="blockllm-") as folder:
            for path in (catalog, log):
                shutil.copyfile(path, Path(folder, path.name))
            yield f"{Path(folder, catalog.name).as_uri()}?mode=rw"


@contextmanager
def _without_writers(lock: Path) -> Iterator[None]:
    if not lock.exists():
        yield
        return
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ZooError(f"{lock.parent}: a writer is at work; try again") from error
        yield
