"""What all tests share: the plugins with the fixtures, and a guard around the unit tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# A plugin comes after those it imports, so that pytest can rewrite the assertions of all of them.
pytest_plugins = [
    "support.postgres",
    "support.install",
    "support.server_home",
    "support.small_disk",
    "support.doctor_stage",
    "support.http_api",
    "support.running_api",
    "support.installation",
    "support.oracles",
    "support.two_servers",
    "support.caching",
]

_UNIT = Path(__file__).parent / "unit"

# Audit events (Python manual, "Audit events table") of what a unit test has no business doing.
# Making a socket is not among them: an event loop makes a pair for itself.
_FORBIDDEN = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
    }
)
_in_unit_test = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _in_unit_test and event in _FORBIDDEN:
        if event == "subprocess.Popen" and arguments[0] == "git":
            return  # The tests of the house rules ask git which files the repository has.
        # A BaseException, so that no `except Exception` of the code under test can hide it.
        pytest.fail(f"a unit test did {event}: it belongs to tests/integration")


# An audit hook cannot be removed again, hence the flag.
sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def _unit_tests_stay_inside(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit tests start no process and open no connection."""
    global _in_unit_test
    _in_unit_test = request.path.is_relative_to(_UNIT)
    yield
    _in_unit_test = False
