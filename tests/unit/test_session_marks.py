"""Which sessions are the runtime's own, when the server's clock is not ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tenancy.data_isolation.core.crypto import parse_master_key, session_mark
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName
from tenancy.data_isolation.engine.session_marks import SessionId, SessionMarks

KEY = parse_master_key("5a" * 32)
ISSUED = 1_790_000_000


def _row(began_s: float) -> Any:
    role, database = RoleName("tenancy_rows"), DatabaseName("tenancy")
    return {
        "pid": 7,
        "backend_start": datetime.fromtimestamp(began_s, UTC),
        "role": role,
        "database": database,
        "application_name": session_mark(KEY, "main", role, database, ISSUED * 1_000),
    }


@pytest.mark.parametrize("ahead_s", [0, 3_600, -3_600])
def test_a_clock_that_is_off_makes_no_strangers(ahead_s: int):
    marks = SessionMarks(KEY, ServerName("main"), entries_max=10)
    row = _row(ISSUED + ahead_s + 1)

    marks.clock_ahead_s = float(ahead_s)
    marks.look([row])

    assert marks.is_own(SessionId(row["pid"], row["backend_start"]))


@pytest.mark.parametrize("late_s", [120, -120])
def test_a_mark_is_worth_nothing_at_another_time(late_s: int):
    marks = SessionMarks(KEY, ServerName("main"), entries_max=10, connect_timeout_s=10)
    row = _row(ISSUED + late_s)

    marks.look([row])

    assert not marks.is_own(SessionId(row["pid"], row["backend_start"]))
