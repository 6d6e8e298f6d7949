"""Who may run another statement that takes long."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.engine.long_statements import LongStatements

HEAVY, LIGHT = TenantNo(1), TenantNo(2)
LIMITS = TierLimits(long_statements_max=2)


@pytest.fixture
def long() -> LongStatements:
    return LongStatements(Settings(long_statement_ms=100, server_long_statements_max=3))


def departs(long: LongStatements, tenant: TenantNo, began: float) -> None:
    """Each statement has a session of its own here."""
    long.departed((tenant, began), tenant, began)


def lands(
    long: LongStatements, tenant: TenantNo, began: float, now: float, *, result_bytes: int = 0
) -> bool:
    return long.landed((tenant, began), tenant, now, result_bytes=result_bytes)


def crowded(long: LongStatements, tenant: TenantNo, began: float, now: float) -> bool:
    return long.crowded((tenant, began), tenant, began, LIMITS, now)


def test_who_runs_nothing_long_runs_more_and_more(long):
    """It begins with as many as may be long, and each that ends quickly gives room for one more."""
    now = 0.0
    for room in range(2, 12):
        departed = []
        while long.may_depart(LIGHT, LIMITS, now):
            now += 0.0001
            departs(long, LIGHT, now)
            departed.append(now)
        assert len(departed) == room
        assert not long.is_held(LIGHT, now)
        lands(long, LIGHT, departed[0], now, result_bytes=0)
        for began in departed[1:]:
            long._began.pop((LIGHT, began))
            long._tenants[LIGHT].began.remove(began)


def test_who_ran_something_long_begins_anew(long):
    for n in range(5):
        departs(long, LIGHT, float(n))
        lands(long, LIGHT, float(n), n + 0.01, result_bytes=0)
    departs(long, LIGHT, 5.0)
    lands(long, LIGHT, 5.0, 6.0, result_bytes=0)
    for n in range(2):
        assert long.may_depart(LIGHT, LIMITS, 9.0)
        departs(long, LIGHT, 9.0 + n / 1_000)
    assert not long.may_depart(LIGHT, LIMITS, 9.01)


def test_beside_one_that_takes_long_a_tenant_runs_so_many(long):
    departs(long, HEAVY, 0.0)
    assert long.may_depart(HEAVY, LIMITS, 0.2)
    departs(long, HEAVY, 0.2)
    assert not long.may_depart(HEAVY, LIMITS, 0.2)
    assert long.is_held(HEAVY, 0.2)
    assert long.may_depart(LIGHT, LIMITS, 0.2)


def test_it_is_remembered_for_a_while(long):
    departs(long, HEAVY, 0.0)
    lands(long, HEAVY, 0.0, 1.0, result_bytes=0)
    assert long.is_held(HEAVY, 2.9)
    assert not long.is_held(HEAVY, 3.1)
    long.forget_old(3.1)
    assert long._tenants == {}


def test_quick_statements_leave_nothing_behind(long):
    departs(long, LIGHT, 0.0)
    lands(long, LIGHT, 0.0, 0.05, result_bytes=0)
    long.forget_old(3.0)
    assert long._tenants == {}


def test_all_such_tenants_together_run_so_many_beyond_one_for_each(long):
    for tenant in range(10, 13):
        departs(long, TenantNo(tenant), 0.0)
    assert long.may_depart(HEAVY, LIMITS, 0.8)
    departs(long, HEAVY, 0.5)
    assert not long.may_depart(HEAVY, LIMITS, 0.8), "three others are at work"
    for tenant in (10, 11):
        lands(long, TenantNo(tenant), 0.0, 0.9, result_bytes=0)
        assert long.may_depart(TenantNo(tenant), LIMITS, 0.95), "one is nobody's too many"
    assert long.may_depart(HEAVY, LIMITS, 0.95)


def test_of_what_began_together_the_later_ones_make_room(long):
    for n in range(4):
        departs(long, HEAVY, n / 1_000)
    to_leave = [crowded(long, HEAVY, n / 1_000, 0.11) for n in range(4)]
    assert to_leave == [False, False, True, True]
    # The server's own limit counts what takes long already, and leaves each tenant one.
    departs(long, LIGHT, 0.2)
    departs(long, LIGHT, 0.21)
    assert crowded(long, LIGHT, 0.2, 0.4) is False
    assert crowded(long, LIGHT, 0.21, 0.4)


def test_a_large_result_counts_as_a_long_statement(long):
    departs(long, HEAVY, 0.0)
    assert lands(long, HEAVY, 0.0, 0.05, result_bytes=10**6) is False
    assert long.is_held(HEAVY, 0.06)
    departs(long, LIGHT, 0.0)
    assert lands(long, LIGHT, 0.0, 0.15, result_bytes=0) is False
    departs(long, LIGHT, 1.0)
    assert lands(long, LIGHT, 1.0, 1.25, result_bytes=0) is True, "its session is spent"


def test_what_was_known_to_be_quick_counts_when_it_takes_long(long):
    assert lands(long, HEAVY, 0.0, 0.05) is False, "it was not counted"
    assert long._tenants == {}
    assert [crowded(long, HEAVY, n / 1_000, 0.11) for n in range(3)] == [False, False, True]
    assert long.is_held(HEAVY, 0.2)
    assert not long.may_depart(HEAVY, LIMITS, 0.2)
    assert lands(long, HEAVY, 0.0, 1.0) is True
    lands(long, HEAVY, 0.001, 1.0)
    lands(long, HEAVY, 0.002, 1.0)
    long.forget_old(4.0)
    assert long._tenants == {}
    assert long._began == {}
