"""The files of measured windows: what is in them, who can read them, what is removed and when."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.engine import window_files
from tenancy.data_isolation.engine.busiest import Measure
from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.measured_windows import Cell, MeasuredTenant, MeasuredWindow
from tenancy.data_isolation.engine.window_files import (
    COLUMNS,
    WindowFiles,
    WindowsLostError,
    measurements_directory,
    window_paths,
)
from tenancy.data_isolation.engine.window_reader import busiest, read_windows

AT = datetime(2026, 3, 4, 5, 31, tzinfo=UTC)


def files(home: Path, process: str = "actor", **settings: Any) -> WindowFiles:
    chosen = {"server_free_disk_min_bytes": 1} | settings
    return WindowFiles(Settings(home=home, **chosen), process)


def window(*numbers: int, at: datetime = AT, busy_s: float = 1.0) -> MeasuredWindow:
    tenants = []
    for number in numbers:
        tenant = MeasuredTenant(number, None)
        tenant.tenant_id, tenant.level, tenant.server = f"t-{number}", "row", "main"
        cell = tenant.cells["f"] = Cell("f", "read", ("users",))
        cell.operations, cell.sampled, cell.cpu_s = 10, 2, 0.5
        cell.busy_s = busy_s * number
        cell.cache_hits = 5 - number
        cell.latencies = {100 + number: 8, 200: 2}
        tenants.append(tenant)
    return MeasuredWindow(began_at=at, length_s=60.0, tenants=tuple(tenants))


def table(home: Path) -> Any:
    return read_windows(home, since=AT - timedelta(days=400), until=AT + timedelta(days=400))


def test_a_window_is_read_as_it_was_written_also_by_others(tmp_path):
    files(tmp_path).write(window(1, 2))

    rows = table(tmp_path).to_pylist()
    assert [row["tenant_id"] for row in rows] == ["t-1", "t-2"]
    first = rows[0]
    assert (first["window_start"], first["window_s"], first["process"]) == (AT, 60.0, "actor")
    assert (first["latency_buckets"], first["latency_counts"]) == ([101, 200], [8, 2])
    assert first["latency_p50_s"] < first["latency_p95_s"]
    # Two of ten were looked at, and nothing was read or written for them.
    assert (first["cpu_s"], first["read_bytes"]) == (2.5, 0.0)
    dataset = pyarrow.dataset.dataset(
        measurements_directory(tmp_path), format="parquet", partitioning="hive"
    )
    found = dataset.to_table(filter=pyarrow.dataset.field("day") == "2026-03-04")
    assert found.num_rows == 2
    assert dataset.files[0].endswith(".parquet")
    assert pyarrow.parquet.read_schema(dataset.files[0]).metadata[b"tenancy.measurements"] == b"1"


def test_a_process_has_one_file_for_a_quarter_of_an_hour(tmp_path):
    mine, other = files(tmp_path), files(tmp_path)
    for minute in range(0, 30, 5):
        mine.write(window(1, at=AT.replace(minute=minute)))
    other.write(window(2))

    names = sorted(path.name[:2] for path in window_paths(measurements_directory(tmp_path)))
    assert names == ["00", "15", "30"]
    assert table(tmp_path).num_rows == 7


def test_an_empty_window_leaves_no_file(tmp_path):
    assert files(tmp_path).write(window()) is False
    assert not measurements_directory(tmp_path).exists()


def test_only_the_owner_can_read(tmp_path):
    files(tmp_path).write(window(1))

    top = tmp_path / "measurements"
    for path in (top, *top.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_old_goes_and_then_the_oldest_of_what_is_too_much(tmp_path):
    made = files(tmp_path, measurement_retention_s=86_400.0)
    for hours in (0, 10, 20, 30):
        made.write(window(1, at=AT + timedelta(hours=hours)))
    left = measurements_directory(tmp_path) / "day=2026-03-04" / "hour=05" / ".30-x.parquet.new"
    left.touch()

    made.prune(AT + timedelta(hours=30))
    assert table(tmp_path)["window_start"].to_pylist() == [
        AT + timedelta(hours=hours) for hours in (10, 20, 30)
    ]
    assert not left.parent.exists()

    size = window_paths(measurements_directory(tmp_path))[0].stat().st_size
    files(tmp_path, measurement_bytes_max=size * 2).prune(AT + timedelta(hours=30))
    assert table(tmp_path)["window_start"].to_pylist() == [
        AT + timedelta(hours=hours) for hours in (20, 30)
    ]


def test_a_tenant_is_forgotten_in_all_files(tmp_path):
    made = files(tmp_path)
    made.write(window(1, 2))
    files(tmp_path, "other").write(window(2, 3))
    files(tmp_path, "third").write(window(2))
    assert made.tenants() == {1, 2, 3}

    made.forget([2])

    assert made.tenants() == {1, 3}
    assert len(window_paths(measurements_directory(tmp_path))) == 2
    everything = b"".join(
        path.read_bytes() for path in measurements_directory(tmp_path).rglob("*") if path.is_file()
    )
    assert b"t-2" not in everything
    assert b"t-3" in everything


def test_a_file_in_pieces_is_passed_over_and_its_writer_begins_it_anew(tmp_path):
    made = files(tmp_path)
    made.write(window(1))
    files(tmp_path, "other").write(window(2))
    path = next(p for p in window_paths(measurements_directory(tmp_path)) if "actor" in p.name)
    path.write_bytes(path.read_bytes()[:100])

    assert table(tmp_path)["tenant_no"].to_pylist() == [2]
    made.write(window(3))
    assert sorted(table(tmp_path)["tenant_no"].to_pylist()) == [2, 3]


def test_a_window_is_lost_rather_than_waited_for_or_the_disk_filled(tmp_path, monkeypatch):
    made = files(tmp_path)
    made.write(window(1))
    monkeypatch.setattr(window_files, "_LOCK_WAIT_S", 0.02)
    lock = FileLock(measurements_directory(tmp_path) / ".lock")
    assert lock.try_take()
    with pytest.raises(WindowsLostError, match="held by another process"):
        made.write(window(2))
    lock.release()
    with pytest.raises(WindowsLostError, match="MiB left"):
        files(tmp_path, server_free_disk_min_bytes=1 << 59).write(window(3))
    assert table(tmp_path)["tenant_no"].to_pylist() == [1]


def test_the_busiest_are_added_up_over_windows(tmp_path):
    made = files(tmp_path)
    for minute in range(3):
        made.write(window(1, 2, 3, at=AT + timedelta(minutes=minute)))

    def found(**options: Any) -> list[Any]:
        given = {"since": AT, "until": AT + timedelta(minutes=10)} | options
        return busiest(tmp_path, **given)

    usage = found(limit=2)
    assert [item.tenant_id for item in usage] == ["t-3", "t-2"]
    assert (usage[0].operations, usage[0].busy_s, usage[0].cpu_s) == (30, 9.0, 7.5)
    assert (usage[0].busy_share, usage[0].cpu_share) == (0.5, pytest.approx(1 / 3))
    assert usage[0].operations_per_s == pytest.approx(0.05)
    assert usage[0].tables == ("users",)
    assert found(per_tenant=True)[0].tables == ("users",)
    assert [len(found(fingerprint=wanted)) for wanted in ("f", "g")] == [3, 0]
    assert usage[0].latency_p50_s < usage[0].latency_p99_s
    assert [item.tenant_no for item in found(tenant_id="t-1", by=Measure.ROWS)] == [1]
    assert [item.tenant_id for item in found(by=Measure.HITS)] == ["t-1", "t-2", "t-3"]
    assert [item.fingerprint for item in found(per_tenant=True)] == ["all"] * 3
    assert found(since=AT + timedelta(minutes=1), limit=1)[0].operations == 20
    assert busiest(tmp_path / "none", since=AT, until=AT) == []


def test_every_column_is_described():
    page = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text()
    assert [name for name in COLUMNS.names if f"`{name}`" not in page] == []
