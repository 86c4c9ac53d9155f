"""Trace files: one request per line, JSON lines or CSV by the file's ending."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockllm.bench.workload import Row
from blockllm.errors import ConfigError


def read_trace(path: Path) -> list[Row]:
    """Rows of a `.jsonl` or `.csv` file with Row's fields. Raises ConfigError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path}: {error}") from error
    if path.suffix == ".csv":
        rows = [_read_row(path, n, record) for n, record in enumerate(csv.DictReader(lines), 2)]
    else:
        rows = [_read_row(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"trace {path}: holds no request")
    return rows


def _read_row(path: Path, number: int, record: str | dict[str, str]) -> Row:
    try:
        values = msgspec.json.decode(record) if isinstance(record, str) else record
        row = msgspec.convert(values, Row, strict=False)
    except (msgspec.DecodeError, TypeError) as error:
        raise ConfigError(f"trace {path}, line {number}: {error}") from error
    if row.time < 0 or row.prompt_tokens < 1 or row.output_tokens < 1:
        raise ConfigError(f"trace {path}, line {number}: time or a length is too small")
    return row


def write_trace(path: Path, rows: Sequence[Row]) -> None:
    """Write rows so that `read_trace` gives them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, Row.__struct_fields__)
            writer.writeheader()
            writer.writerows(msgspec.structs.asdict(row) for row in rows)
        return
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
