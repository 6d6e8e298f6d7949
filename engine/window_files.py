"""The files that measured windows are kept in: Parquet, by day and hour, under `TENANCY_HOME`.

::

    measurements/v1/day=2026-11-27/hour=14/30-<process>.parquet
    measurements/v1/.lock                      held by who changes a file

A process writes one file for each quarter of an hour, which it replaces whole, with one window
more, whenever a window has ended: so a reader sees all of a window or nothing of it. `COLUMNS` says
what is in them; `docs/measurements.md` says what that means.

Rules this module keeps:

* Only the user of the runtime can read them: they name tenants.
* Bounded: bytes and age, for all processes together. Never more of the disk than is to spare.
* What cannot be written is given up with an error of the operating system's or of Arrow's
  (`WindowsLostError`), and nothing of it is left.

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.latency_buckets import quantile_s
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.measured_windows import Cell, MeasuredTenant, MeasuredWindow

#: Changes whenever a column changes its meaning or goes; the directory is named after it. Columns
#: may be added.
VERSION: Final = 1
FILE_MINUTES: Final = 15
_LOCK_WAIT_S: Final = 20.0
_LOCK_STEP_S: Final = 0.01
_SUFFIX: Final = ".parquet"
_QUANTILES: Final = (0.50, 0.95, 0.99)
_INT: Final = pa.int64()
_FLOAT: Final = pa.float64()
_TEXT: Final = pa.string()

COLUMNS: Final = pa.schema(
    [
        ("window_start", pa.timestamp("us", tz="UTC")),
        ("window_s", _FLOAT),
        ("process", _TEXT),
        ("tenant_no", _INT),
        ("tenant_id", _TEXT),
        ("level", _TEXT),
        ("server", _TEXT),
        ("fingerprint", _TEXT),
        ("kind", _TEXT),
        ("tables", pa.list_(_TEXT)),
        ("operations", _INT),
        ("refused", _INT),
        ("failed", _INT),
        ("unavailable", _INT),
        ("cancelled", _INT),
        ("cache_hits", _INT),
        ("rows", _INT),
        ("result_bytes", _INT),
        ("latency_s", _FLOAT),
        ("latency_max_s", _FLOAT),
        ("latency_p50_s", _FLOAT),
        ("latency_p95_s", _FLOAT),
        ("latency_p99_s", _FLOAT),
        ("latency_buckets", pa.list_(pa.int16())),
        ("latency_counts", pa.list_(_INT)),
        ("queue_s", _FLOAT),
        ("queue_max_s", _FLOAT),
        ("busy_s", _FLOAT),
        ("sampled", _INT),
        ("cpu_s", _FLOAT),
        ("read_bytes", _FLOAT),
        ("written_bytes", _FLOAT),
    ],
    metadata={"tenancy.measurements": str(VERSION)},
)


class WindowsLostError(Exception):
    """A window could not be written, or a tenant's windows could not be taken out."""


def measurements_directory(home: Path) -> Path:
    """Where the files are."""
    return home / "measurements" / f"v{VERSION}"


class WindowFiles:
    """The files of one installation, as one process writes them. Used by one thread at a time."""

    def __init__(self, settings: Settings, process: str) -> None:
        """`process` is a word for a file name; it need not be unique."""
        self._directory = measurements_directory(settings.home)
        self._bytes_max = settings.measurement_bytes_max
        self._keep = timedelta(seconds=settings.measurement_retention_s)
        self._spare_bytes = settings.server_free_disk_min_bytes
        self._process = process
        self._name = f"{process}-{secrets.token_hex(4)}"

    def write(self, window: MeasuredWindow) -> bool:
        """Add a window to the file of its time; False if there is nothing in it.

        Raises `WindowsLostError`.
        """
        columns = _columns(window, self._process)
        if not columns["operations"]:
            return False
        fresh = pa.table(columns, schema=COLUMNS)
        path = self._path(window.began_at)
        with _told(), self._locked():
            self._check_room()
            _make_private(path.parent, self._directory.parent)
            before = _present(path)
            _replace(path, fresh if before is None else pa.concat_tables([before, fresh]))
        return True

    def prune(self, now: datetime) -> None:
        """Remove what is too old, and then the oldest of what is too much."""
        with _told(), self._locked():
            files = [(path, path.stat().st_size) for path in window_paths(self._directory)]
            total = sum(size for _, size in files)
            oldest = now - self._keep
            for path, size in files:
                began_at = time_of(path)
                old = began_at + timedelta(minutes=FILE_MINUTES) <= oldest
                if old or total > self._bytes_max:
                    path.unlink(missing_ok=True)
                    total -= size
            self._tidy()

    def tenants(self) -> frozenset[TenantNo]:
        """The numbers of all tenants in the files."""
        found: set[Any] = set()
        with _told():
            for path in window_paths(self._directory):
                table = read_file(path, ["tenant_no"])
                if table is not None:
                    found.update(pc.unique(table["tenant_no"]).to_pylist())
        return frozenset(TenantNo(number) for number in found if number)

    def forget(self, numbers: Sequence[TenantNo]) -> None:
        """Take all windows of these tenants out. Raises `WindowsLostError`."""
        if not numbers:
            return
        gone = pa.array(numbers, _INT)
        with _told(), self._locked():
            for path in window_paths(self._directory):
                # Most files have nothing of them, and one column is soon read.
                named = read_file(path, ["tenant_no"])
                if named is None or not pc.any(pc.is_in(named["tenant_no"], gone)).as_py():
                    continue
                table = read_file(path)
                if table is None:
                    continue
                of_others = pc.invert(pc.is_in(table["tenant_no"], gone))
                kept = table.filter(of_others)
                if not kept.num_rows:
                    path.unlink(missing_ok=True)
                elif kept.num_rows < table.num_rows:
                    _replace(path, kept)

    def _path(self, at: datetime) -> Path:
        at = at.astimezone(UTC)
        quarter = at.minute - at.minute % FILE_MINUTES
        folder = self._directory / f"day={at:%Y-%m-%d}" / f"hour={at:%H}"
        return folder / f"{quarter:02}-{self._name}{_SUFFIX}"

    def _check_room(self) -> None:
        """PostgreSQL, whose disk this may be, needs the last of it more."""
        place = self._directory
        while not place.exists():
            place = place.parent
        if shutil.disk_usage(place).free < self._spare_bytes:
            raise WindowsLostError(
                f"the disk of {self._directory} has less than {self._spare_bytes >> 20} MiB left"
            )

    def _tidy(self) -> None:
        """Remove what writers have left that were killed, and directories with nothing in them."""
        for left in self._directory.glob("day=*/hour=*/.*.new"):
            left.unlink(missing_ok=True)
        for folder in (*self._directory.glob("day=*/hour=*"), *self._directory.glob("day=*")):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        _make_private(self._directory, self._directory.parent)
        lock = FileLock(self._directory / ".lock")
        until = time.monotonic() + _LOCK_WAIT_S
        while not lock.try_take():
            if time.monotonic() > until:
                raise WindowsLostError(f"{lock.path} is held by another process for too long")
            time.sleep(_LOCK_STEP_S)
        try:
            yield
        finally:
            lock.release()


def window_paths(directory: Path) -> list[Path]:
    """The files, the oldest first."""
    found = (path for path in directory.glob(f"day=*/hour=*/*{_SUFFIX}") if path.name[0] != ".")
    return sorted(path for path in found if _is_ours(path))


def _is_ours(path: Path) -> bool:
    try:
        time_of(path)
    except ValueError:
        return False
    return True


def time_of(path: Path) -> datetime:
    """When the windows of a file began, at the earliest."""
    day, hour = path.parent.parent.name, path.parent.name
    minute = path.name.partition("-")[0]
    return datetime.strptime(f"{day} {hour} {minute}+0000", "day=%Y-%m-%d hour=%H %M%z")


def _columns(window: MeasuredWindow, process: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
    cells = sorted(window.cells(), key=lambda pair: (pair[0].tenant_no, pair[1].fingerprint))
    for tenant, cell in cells:
        row = _row(tenant, cell)
        row["window_start"], row["window_s"] = window.began_at, window.length_s
        row["process"] = process
        for name, values in columns.items():
            values.append(row[name])
    return columns


def _row(tenant: MeasuredTenant, cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(cell, name) for name in COLUMNS.names if hasattr(cell, name)
    }
    row["tenant_no"], row["tenant_id"] = tenant.tenant_no, tenant.tenant_id
    row["level"], row["server"] = tenant.level, tenant.server
    row["tables"] = list(cell.tables)
    buckets = sorted(cell.latencies)
    row["latency_buckets"] = buckets
    row["latency_counts"] = [cell.latencies[bucket] for bucket in buckets]
    for share in _QUANTILES:
        row[f"latency_p{round(share * 100)}_s"] = quantile_s(cell.latencies, share)
    # What was seen of some stands for all; what was not seen is not known.
    scale = cell.operations / cell.sampled if cell.sampled else None
    for name in ("cpu_s", "read_bytes", "written_bytes"):
        value = getattr(cell, name)
        row[name] = None if scale is None or value is None else value * scale
    return row


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    """A file's rows; None for one that is gone, or that a power failure has left in pieces."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowException):
        return None


def _present(path: Path) -> pa.Table | None:
    """As `read_file`, but what only cannot be read just now is not taken for gone."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except pa.ArrowException:
        return None
    except OSError as error:
        # Of what it cannot make sense of Arrow says so without a number.
        if error.errno in (None, errno.ENOENT):
            return None
        raise


def _replace(path: Path, table: pa.Table) -> None:
    """Put a file with mode 0600 in the place of `path`, whole and on the disk, or not at all."""
    # Readers of datasets pass over names that begin with a dot.
    fresh = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _make_private(path: Path, top: Path) -> None:
    """Make a directory below `top`, and that one, for this user alone."""
    for folder in reversed([item for item in (path, *path.parents) if item.is_relative_to(top)]):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise WindowsLostError(str(error)) from error
