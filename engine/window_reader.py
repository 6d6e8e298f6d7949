"""What the files of measured windows say: the busiest tenants and kinds of statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tenancy.data_isolation.core.latency_buckets import quantile_s
from tenancy.data_isolation.engine.busiest import Measure
from tenancy.data_isolation.engine.window_files import (
    COLUMNS,
    FILE_MINUTES,
    measurements_directory,
    read_file,
    time_of,
    window_paths,
)

_KEY: Final = ("tenant_no", "tenant_id", "fingerprint", "kind")
_SUMS: Final = (
    *("operations", "refused", "failed", "unavailable", "cancelled", "cache_hits"),
    *("rows", "result_bytes", "latency_s", "queue_s", "busy_s"),
    *("sampled", "cpu_s", "read_bytes", "written_bytes"),
)
_MOST: Final = ("latency_max_s", "queue_max_s")
_SKETCH: Final = ("latency_buckets", "latency_counts")
_TABLES: Final = "tables"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What operations of one tenant and one kind came to. Times are in seconds.

    Shares are of what all tenants' operations came to in the same time; None where nothing is known
    of it. `operations_per_s` is over the whole time that was asked for.
    """

    tenant_no: int
    tenant_id: str | None
    fingerprint: str
    kind: str | None
    #: The schema's tables that the statement names; of all its statements together, for a tenant.
    tables: tuple[str, ...]
    operations: int
    operations_per_s: float
    refused: int
    failed: int
    unavailable: int
    cancelled: int
    cache_hits: int
    rows: int
    result_bytes: int
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    latency_max_s: float
    queue_mean_s: float | None
    queue_max_s: float
    busy_s: float
    busy_share: float | None
    sampled: int
    cpu_s: float | None
    cpu_share: float | None
    read_bytes: float | None
    written_bytes: float | None


def read_windows(
    home: Path, *, since: datetime, until: datetime, columns: tuple[str, ...] | None = None
) -> pa.Table:
    """All rows of windows that began from `since` to `until`. Blocks.

    Files that cannot be read are passed over. `OSError` for a directory that cannot.
    """
    directory = measurements_directory(home)
    if directory.exists():
        next(directory.iterdir(), None)  # One that must not be read is no empty one.
    names = columns or tuple(COLUMNS.names)
    tables = [pa.schema([COLUMNS.field(name) for name in names]).empty_table()]
    for path in window_paths(directory):
        began_at = time_of(path)
        if began_at + timedelta(minutes=FILE_MINUTES) <= since or began_at > until:
            continue
        table = read_file(path, tuple({*names, "window_start"}))
        if table is None:
            continue
        starts = table["window_start"]
        inside = pc.and_(pc.greater_equal(starts, since), pc.less_equal(starts, until))
        tables.append(table.filter(inside).select(names))
    return pa.concat_tables(tables, promote_options="default")


def busiest(
    home: Path,
    *,
    since: datetime,
    until: datetime,
    by: Measure = Measure.BUSY,
    limit: int = 20,
    tenant_id: str | None = None,
    fingerprint: str | None = None,
    per_tenant: bool = False,
) -> list[Usage]:
    """Tenants' kinds of statement that came to most, the first one to the most. Blocks.

    `tenant_id` and `fingerprint` leave out all others. `per_tenant` adds up all kinds of a tenant.
    """
    columns = (*_KEY, *_SUMS, *_MOST, *_SKETCH, _TABLES)
    table = read_windows(home, since=since, until=until, columns=columns)
    totals = {name: pc.sum(table[name]).as_py() for name in ("busy_s", "cpu_s")}
    for name, wanted in (("tenant_id", tenant_id), ("fingerprint", fingerprint)):
        if wanted is not None:
            table = table.filter(pc.equal(table[name], wanted))
    key = [name for name in _KEY if not per_tenant or name.startswith("tenant")]
    grouped = table.group_by(key, use_threads=False).aggregate(
        [(name, "sum") for name in _SUMS] + [(name, "max") for name in _MOST]
    )
    rows = [_plain(row) for row in grouped.to_pylist()]
    rows.sort(key=lambda row: _rank(row, by), reverse=True)
    elapsed_s = max((until - since).total_seconds(), 1e-9)
    return [_usage(row, _of_group(table, key, row), totals, elapsed_s) for row in rows[:limit]]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("_sum").removesuffix("_max"): row[name] for name in row} | {
        name: row[f"{name}_max"] for name in _MOST
    }


def _rank(row: Mapping[str, Any], by: Measure) -> float:
    value: float | None
    match by:
        case Measure.BUSY:
            value = row["busy_s"]
        case Measure.OPERATIONS:
            value = row["operations"]
        case Measure.LATENCY:
            value = row["latency_s"] / max(row["operations"], 1)
        case Measure.QUEUE:
            value = row["queue_s"]
        case Measure.ROWS:
            value = row["rows"]
        case Measure.BYTES:
            value = row["result_bytes"]
        case Measure.CPU:
            value = row["cpu_s"]
        case Measure.ERRORS:
            value = row["failed"] + row["unavailable"] + row["refused"]
        case Measure.HITS:
            value = row["cache_hits"]
    return value or 0.0


def _of_group(table: pa.Table, key: list[str], row: Mapping[str, Any]) -> pa.Table:
    """The rows of one group."""
    wanted: Any = None
    for name in key:
        same = _same(table[name], row[name])
        wanted = same if wanted is None else pc.and_(wanted, same)
    return table.filter(wanted)


def _latencies(group: pa.Table) -> Counter[int]:
    """The sketches of one group, added up."""
    found: Counter[int] = Counter()
    for part in group.select(list(_SKETCH)).to_batches():
        for buckets, counts in zip(part.column(0), part.column(1), strict=True):
            for bucket, count in zip(buckets.as_py(), counts.as_py(), strict=True):
                found[bucket] += count
    return found


def _same(column: pa.ChunkedArray, value: Any) -> Any:
    if value is None:
        return pc.is_null(column)
    return pc.fill_null(pc.equal(column, value), False)


def _usage(
    row: Mapping[str, Any],
    group: pa.Table,
    totals: Mapping[str, float | None],
    elapsed_s: float,
) -> Usage:
    latencies = _latencies(group)
    operations, timed = row["operations"], sum(latencies.values())
    same = ("tenant_no", "tenant_id", "refused", "failed", "unavailable", "cancelled")
    plain = ("cache_hits", "rows", "result_bytes", "latency_max_s", "queue_max_s", "sampled")
    known = ("cpu_s", "read_bytes", "written_bytes", "busy_s", "operations")
    return Usage(
        **{name: row[name] for name in (*same, *plain, *known)},
        fingerprint=row.get("fingerprint", "all"),
        kind=row.get("kind"),
        tables=tuple(sorted(pc.unique(pc.list_flatten(group[_TABLES])).to_pylist())),
        operations_per_s=operations / elapsed_s,
        latency_mean_s=row["latency_s"] / timed if timed else None,
        latency_p50_s=quantile_s(latencies, 0.50),
        latency_p95_s=quantile_s(latencies, 0.95),
        latency_p99_s=quantile_s(latencies, 0.99),
        queue_mean_s=row["queue_s"] / timed if timed else None,
        busy_share=_share(row["busy_s"], totals["busy_s"]),
        cpu_share=_share(row["cpu_s"], totals["cpu_s"]),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
