"""The catalogue's connections: one SQLite file in WAL mode, so readers never wait for a writer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from blockllm.errors import CorruptStore, ZooError
from blockllm.zoo.room import full, read_only
from blockllm.zoo.unwritable import address_without_files

# format n of the catalogue is what the first n scripts make; older ones are brought up to date
_SCRIPTS = ("schema.sql", "measurement.sql", "deltas.sql", "ends.sql", "seals.sql")
_VERSION = len(_SCRIPTS)
# what SQLite says on a full disk where it does not say SQLITE_FULL: a quota, its shared memory
_FULL_TOO = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
# the file may be sound, but it cannot be used now
_UNUSABLE = (
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)  # fmt: skip
# how long a transaction waits for another process's commit, which takes milliseconds
_BUSY_SECONDS = 30.0


class Catalog:
    """Opens short transactions on the catalogue file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, renew: Callable[[sqlite3.Connection, int], None]) -> None:
        """Make the tables that are not there; only under the zoo's write lock. `renew` brings what
        an older format (its number is the second argument) wrote up to date, in the same
        transaction.
        """
        with self._connection(self._address("rwc")) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise ZooError(
                    f"{self._path.parent} has format {version}; this program reads {_VERSION}"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            # a script may replace a table that others refer to
            connection.execute("PRAGMA foreign_keys = OFF")
            folder = Path(__file__).parent
            missing = [(folder / name).read_text("utf-8") for name in _SCRIPTS[version:]]
            if missing:
                connection.executescript("\n".join(["BEGIN;", *missing]))
                if version:
                    renew(connection, version)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute("COMMIT")

    def is_ready(self) -> bool:
        """Whether the tables are there in the format this program reads."""
        if not self._path.exists():
            return False
        with self.reading() as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one consistent state, whatever is written meanwhile. Also on a
        read-only or a full disk."""
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(self._reading_connection(self._address("rw")))
            except CorruptStore:
                raise
            except ZooError as error:  # SQLite could make no file beside the catalogue
                try:
                    address = stack.enter_context(address_without_files(self._path))
                except (ZooError, OSError):
                    raise error from None
                connection = stack.enter_context(self._reading_connection(address))
            yield connection

    @contextmanager
    def _reading_connection(self, address: str) -> Iterator[sqlite3.Connection]:
        with self._connection(address) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # reads the file
            yield connection
            connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that becomes visible and durable when the body ends without an error."""
        with self._connection(self._address("rw")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _address(self, mode: str) -> str:
        # "rw", unlike "rwc", makes no file where none is
        if mode == "rw" and not os.access(self._path.parent, os.W_OK):
            # SQLite cannot make the log that WAL reads; without one the file alone says all
            has_log = self._path.with_name(f"{self._path.name}-wal").exists()
            mode = "ro" if has_log else "ro&immutable=1"
        return f"{self._path.as_uri()}?mode={mode}"

    @contextmanager
    def _connection(self, address: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(
                address,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA temp_store = MEMORY")  # the disk may be full
                connection.text_factory = _text
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # SQLite's own messages quote names of the file, which may be no text any more
            raise self._damaged(error) from error

    def _explain(self, error: sqlite3.Error) -> ZooError:
        """What SQLite or Python's module says, as one of our errors."""
        code = getattr(error, "sqlite_errorcode", None)  # none where Python's module found it
        kind = None if code is None else code & 0xFF
        if kind == sqlite3.SQLITE_FULL or code in _FULL_TOO:
            return full(self._path.parent)
        if kind == sqlite3.SQLITE_READONLY:
            return read_only(self._path.parent, "its catalogue is read-only")
        if kind in _UNUSABLE:
            return ZooError(f"{self._path}: {error}")
        return self._damaged(error)

    def _damaged(self, error: Exception) -> CorruptStore:
        what = " ".join(str(error).split())[:300]  # SQLite quotes its scripts, lines and all
        return CorruptStore(
            f"the catalogue {self._path} is damaged: {what}. Put a copy of it back, or add the"
            " models to a new zoo"
        )


def _text(data: bytes) -> str | bytes:
    """Text of the catalogue; what is none stays bytes, which every typed row refuses."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
