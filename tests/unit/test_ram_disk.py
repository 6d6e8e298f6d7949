"""Where servers of tests keep their files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from support import ram_disk


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the file system in memory; beside it, the ordinary temporary directory."""
    memory = tmp_path / "memory"
    memory.mkdir()
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(ram_disk, "_MEMORY", memory)
    monkeypatch.setattr(ram_disk, "_ROOM_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    return memory


def test_directories_are_in_memory_where_there_is_room(memory: Path, monkeypatch):
    found = ram_disk.server_directory()
    assert found.parent == memory
    assert found.stat().st_mode & 0o777 == 0o700
    assert ram_disk.server_directory() != found

    monkeypatch.setattr(ram_disk, "_ROOM_BYTES", 1 << 62)
    assert ram_disk.server_directory().parent == memory.parent / "disk"


def test_a_system_without_it_has_them_on_the_disk(memory: Path):
    memory.rmdir()

    assert ram_disk.server_directory().parent == memory.parent / "disk"


def test_only_what_a_run_that_is_over_has_left_long_ago_is_removed(memory: Path, monkeypatch):
    monkeypatch.setattr(ram_disk.psutil, "pid_exists", lambda pid: pid == os.getpid())
    names = {
        "forgotten": "tenancy-test-4000000-a",
        "lately": "tenancy-test-4000000-b",
        "alive": f"tenancy-test-{os.getpid()}-c",
        "stranger": "other-4000000-d",
    }
    for kind, name in names.items():
        (memory / name / "data").mkdir(parents=True)
        if kind != "lately":
            os.utime(memory / name, (0, 0))

    made = ram_disk.server_directory()

    assert {path.name for path in memory.iterdir()} == {
        *(names[kind] for kind in ("lately", "alive", "stranger")),
        made.name,
    }
