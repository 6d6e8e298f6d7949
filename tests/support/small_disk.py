"""A disk that is small enough to be filled by a test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory, mounted at `path`. Skips the test where mounting is not allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def mount(self, size_mib: int) -> None:
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0755", "tmpfs", self.path]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no program to mount a small disk with")
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)

    def fill(self, spare_bytes: int) -> None:
        """Leave no more than that free."""
        with self._ballast.open("wb") as file:
            while (more := shutil.disk_usage(self.path).free - spare_bytes) > 0:
                file.write(b"\0" * min(more, 1 << 20))
                file.flush()

    def make_room(self) -> None:
        self._ballast.unlink()

    def unmount(self) -> None:
        if self.path.is_mount():
            subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def small_disk(home: Path) -> Iterator[SmallDisk]:
    """A disk that the test mounts with the size it wants; unmounted at the end."""
    disk = SmallDisk(home.parent / "disk")
    yield disk
    disk.unmount()
