"""A home for embedded servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ram_disk import server_directory


@pytest.fixture
def home() -> Iterator[Path]:
    """A `TENANCY_HOME` that does not exist yet, in a directory that is closed to others.

    Not in pytest's own temporary directory: every pytest that starts closes that one again, and the
    user that servers run as under root is then locked out of it in the middle of a test.
    """
    directory = server_directory()
    yield directory / "home"
    shutil.rmtree(directory)
