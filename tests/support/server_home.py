"""A home for embedded servers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """A `TENANCY_HOME` that does not exist yet, in a directory that is closed to others.

    Not in pytest's own temporary directory: every pytest that starts closes that one again, and the
    user that servers run as under root is then locked out of it in the middle of a test.
    """
    directory = Path(tempfile.mkdtemp(prefix="tenancy-test-"))
    yield directory / "home"
    shutil.rmtree(directory)
