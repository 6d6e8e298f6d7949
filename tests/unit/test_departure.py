"""When the next session of a line goes to work, and with how many."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.engine import departure
from tenancy.data_isolation.engine.departure import GATHER_S, GROWTH_WAIT_S, may_depart, share
from tenancy.data_isolation.engine.long_statements import LongStatements
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.session_line import Line


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(departure, "_BUSY_MAX", 2)


@pytest.fixture
def long() -> LongStatements:
    return LongStatements(Settings())


def line(waiting: int, *at_work: int) -> Line:
    """One that has waited since 0, with flights of these sizes at work."""
    made = Line(
        SessionKey(
            ServerName("main"), DatabaseName("tenancy"), SchemaName("app"), RoleName("rows")
        ),
        10,
        0.0,
    )
    made.waiting = waiting
    made.short = {f"s{n}": size for n, size in enumerate(at_work)}
    return made


@pytest.mark.parametrize("waiting", [1, 10, 1_000])
def test_where_nothing_is_at_work_nobody_waits(long, waiting):
    assert may_depart(line(waiting), long, 0.0)


def test_where_few_come_nobody_waits_either(long):
    assert may_depart(line(1, 1), long, 0.0)
    assert may_depart(line(2, 2, 2, 1), long, 0.0)
    assert not may_depart(line(1, 1, 1, 1, 1), long, 0.0), "more sessions come only after a while"


def test_the_second_waits_until_it_has_enough_or_for_a_moment(long):
    assert not may_depart(line(15, 16), long, GATHER_S / 2)
    assert may_depart(line(16, 16), long, 0.0)
    assert may_depart(line(1, 16), long, GATHER_S)


def test_further_ones_come_when_those_at_work_are_held_up(long):
    assert not may_depart(line(100, 16, 16), long, GROWTH_WAIT_S / 2)
    assert may_depart(line(100, 16, 16), long, GROWTH_WAIT_S)


def test_sessions_with_long_statements_hold_nobody_up(long):
    waiting = line(5, 16, 1)
    assert not may_depart(waiting, long, 0.0)
    long.departed("s0", TenantNo(1), 0.0)
    assert may_depart(waiting, long, 0.0)


def test_those_who_wait_are_shared_among_the_sessions_that_may_be_at_work(long):
    waiting = line(64)
    waiting.idle = dict.fromkeys("abcd")
    assert share(waiting, 100) == 32
    assert share(waiting, 20) == 20
    waiting.idle = {"a": None}
    assert share(waiting, 100) == 64


def test_what_one_flight_can_take_is_not_divided(long):
    waiting = line(31)
    waiting.idle = dict.fromkeys("abcd")
    assert share(waiting, 100) == 31
    assert share(waiting, 20) == 20
    waiting = line(33)
    waiting.idle = dict.fromkeys("abcd")
    assert share(waiting, 100) == 32
