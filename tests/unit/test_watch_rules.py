"""What of a picture of all sessions is over a limit, and what is done about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenancy.data_isolation.core.crypto import (
    parse_master_key,
    session_mark,
    session_mark_time,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.engine.watch_rules import Offence, SessionView, Verdict, judge

START = datetime(2026, 1, 1, tzinfo=UTC)
OWN, OTHER, SHARED = RoleName("t_own"), RoleName("t_other"), RoleName("shared")
LIMITS = TierLimits(
    statement_timeout_ms=1_000,
    transaction_timeout_ms=5_000,
    idle_transaction_timeout_ms=2_000,
    locks_max=10,
    connections_max=2,
    long_statements_max=1,
)


def session(pid: int = 1, role: RoleName = OWN, **fields: Any) -> SessionView:
    values: dict[str, Any] = {
        "pid": pid,
        "role": role,
        "marked": False,
        "copied": False,
        "shared": role == SHARED,
        "state": "idle",
        "backend_start": START,
        "query_start": None,
        "xact_start": None,
        "age_ms": 10_000 - pid,
        "statement_ms": None,
        "transaction_ms": None,
        "state_ms": None,
        "locks": 0,
        "table_lock": False,
        "advisory_lock": False,
        "login_lock": False,
    }
    return SessionView(**(values | fields))


def active(pid: int = 1, role: RoleName = OWN, ms: int = 10, **fields: Any) -> SessionView:
    began = START + timedelta(seconds=pid)
    return session(
        pid,
        role,
        **{
            "state": "active",
            "statement_ms": ms,
            "transaction_ms": ms,
            "query_start": began,
            "xact_start": began,
        }
        | fields,
    )


def verdict(*sessions: SessionView) -> Verdict:
    return judge(
        sessions,
        lambda role: None if role == OTHER else LIMITS,
        long_ms=100,
        server_long_max=4,
    )


def found(*sessions: SessionView) -> dict[int, tuple[Offence, bool]]:
    return {item.session.pid: (item.offence, item.ends) for item in verdict(*sessions).actions}


def test_what_is_within_the_limits_is_left_alone():
    assert (
        verdict(
            session(1),
            active(2, ms=999),
            session(3, SHARED, marked=True),
            active(4, SHARED, ms=999, marked=True, locks=10),
        )
        == Verdict()
    )


def test_a_login_that_is_nobodys_here_is_left_alone():
    assert verdict(active(1, OTHER, ms=10**9, table_lock=True)) == Verdict()


ALONE = [
    (active(ms=1_000), Offence.STATEMENT_TIME, False),
    (active(ms=3_000), Offence.STATEMENT_TIME, True),
    (active(ms=1_500, marked=True), None, False),
    (active(ms=2_000, marked=True), Offence.STATEMENT_TIME, False),
    (session(state="idle in transaction", transaction_ms=5_000), Offence.TRANSACTION_AGE, True),
    (session(state="idle in transaction", state_ms=2_000), Offence.IDLE_TRANSACTION, True),
    (
        session(state="idle in transaction (aborted)", state_ms=2_000),
        Offence.IDLE_TRANSACTION,
        True,
    ),
    (session(state="idle", state_ms=10**9), None, False),
    (session(locks=11), Offence.LOCKS, True),
    (active(locks=11, marked=True), Offence.LOCKS, False),
    (session(locks=11, marked=True), Offence.LOCKS, True),
    (active(table_lock=True), Offence.TABLE_LOCK, True),
    (active(table_lock=True, marked=True), Offence.TABLE_LOCK, True),
    (session(advisory_lock=True), Offence.ADVISORY_LOCK, True),
    (session(role=SHARED), Offence.STRANGER, True),
    (session(role=SHARED, age_ms=50), None, False),
    (active(role=SHARED, age_ms=50), Offence.STRANGER, True),
]


@pytest.mark.parametrize(("seen", "offence", "ends"), ALONE)
def test_a_session_by_itself(seen, offence, ends):
    assert found(seen) == ({} if offence is None else {1: (offence, ends)})


def test_what_is_done_is_tied_to_what_was_seen():
    (statement,) = verdict(active(ms=1_000)).actions
    (lock,) = verdict(active(table_lock=True)).actions
    (held,) = verdict(session(advisory_lock=True)).actions

    assert (statement.same_statement, statement.same_transaction) == (True, False)
    assert (lock.same_statement, lock.same_transaction) == (False, True)
    assert (held.same_statement, held.same_transaction) == (False, False)


def test_of_long_statements_the_oldest_go_on_and_the_runtimes_first():
    assert found(active(1, ms=500), active(2, ms=300)) == {2: (Offence.LONG_STATEMENTS, True)}
    assert found(active(1, ms=500), active(2, ms=300, marked=True)) == {
        1: (Offence.LONG_STATEMENTS, True)
    }
    assert found(active(1, ms=500), active(2, ms=99)) == {}
    marked = [active(pid, ms=500, marked=True) for pid in (1, 2, 3)]
    assert found(*marked) == {}, "the runtime sees to its own"


def test_of_too_many_sessions_the_youngest_strangers_go():
    sessions = [session(pid) for pid in range(1, 5)]
    assert found(*sessions) == {}
    assert found(*sessions, session(5), session(6, marked=True)) == {
        5: (Offence.CONNECTIONS, True),
        4: (Offence.CONNECTIONS, True),
    }


def test_who_locks_loses_all_sessions_that_the_runtime_did_not_open():
    done = verdict(
        active(1, table_lock=True), session(2), active(3, ms=50), session(4, marked=True)
    )

    assert {item.session.pid for item in done.actions} == {1, 2, 3}
    assert done.penalties == {OWN: 1}


def test_on_the_shared_login_the_runtimes_sessions_stay_whatever_strangers_do():
    own = [active(pid, SHARED, ms=50, marked=True) for pid in (1, 2, 3)]
    done = verdict(*own, active(4, SHARED, table_lock=True), session(5, SHARED))

    assert {item.session.pid for item in done.actions} == {4, 5}
    assert done.penalties == {SHARED: 3}


def test_a_fault_in_a_session_of_the_runtimes_closes_no_door():
    done = verdict(active(1, SHARED, table_lock=True, marked=True), session(2, SHARED, marked=True))

    assert [item.session.pid for item in done.actions] == [1]
    assert done.penalties == {}


def test_overrunning_alone_closes_no_door():
    assert verdict(active(ms=1_000)).penalties == {}
    assert verdict(session(state="idle in transaction", state_ms=2_000)).penalties == {}


def test_whoever_keeps_others_from_altering_a_login_is_ended_and_kept_out():
    done = verdict(session(1, state="idle in transaction", login_lock=True), session(2))

    assert [item.offence for item in done.actions] == [Offence.LOGIN_LOCK] * 2
    assert done.penalties == {OWN: 0}


def test_a_copied_mark_ends_the_copy_and_closes_no_door():
    own, copy = session(1, SHARED, marked=True), session(2, SHARED, copied=True)
    done = verdict(own, copy)

    assert [item.session.pid for item in done.actions] == [2]
    assert done.penalties == {}
    assert verdict(own, session(2, SHARED)).penalties == {SHARED: 1}
    # One that is so new may be the runtime's, and have another name already.
    assert verdict(own, active(2, SHARED, age_ms=20)).penalties == {}
    assert len(verdict(own, active(2, SHARED, age_ms=20)).actions) == 1
    assert verdict(own, session(2, SHARED, copied=True, table_lock=True)).penalties == {SHARED: 1}


def test_a_mark_is_known_by_its_key_login_database_and_server_alone():
    key, other = parse_master_key("5a" * 32), parse_master_key("5b" * 32)
    login, base = RoleName("tenancy_rows"), DatabaseName("tenancy")
    mark = session_mark(key, "main", login, base, 1_700_000_000)

    assert len(mark) <= 63
    assert session_mark_time(key, "main", login, base, mark) == 1_700_000_000
    assert mark != session_mark(key, "main", login, base, 1_700_000_000)
    assert session_mark_time(key, "main", OWN, base, mark) is None
    assert session_mark_time(key, "main", login, "other", mark) is None
    for server, name, master in (
        ("main", mark, other),
        ("second", mark, key),
        ("main", mark[:-1] + ("0" if mark[-1] != "0" else "1"), key),
        ("main", mark.replace("tenancy ", ""), key),
        ("main", "tenancy", key),
        ("main", "tenancy admin", key),
        ("main", "", key),
        ("main", "tenancy ..", key),
        ("main", "tenancy \u00e9.\u00e9.\u00e9", key),
    ):
        assert session_mark_time(master, server, login, base, name) is None, name
