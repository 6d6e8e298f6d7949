"""The token bucket and the count of a tenant's operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import RateLimitedError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.allowance import Allowance, Allowances


class Time:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def allowance(time: Time, **limits: float) -> Allowance:
    return Allowance(TenantType.FREE, TierLimits(**limits), time)  # type: ignore[arg-type]


def enters(item: Allowance, operations: int = 1) -> bool:
    try:
        item.enter(operations)
    except RateLimitedError:
        return False
    item.leave(operations)
    return True


def test_a_burst_is_let_in_and_then_the_rate_holds():
    time = Time()
    item = allowance(time, operations_per_s=10, operations_burst=5)

    assert [enters(item) for _ in range(6)] == [True] * 5 + [False]
    time.now += 0.1
    assert [enters(item) for _ in range(2)] == [True, False]
    time.now += 100
    assert [enters(item) for _ in range(6)] == [True] * 5 + [False]


def test_it_says_when_to_come_again_and_that_is_true():
    time = Time()
    item = allowance(time, operations_per_s=4, operations_burst=2)
    while enters(item):
        pass
    with pytest.raises(RateLimitedError, match="TENANCY_FREE_OPERATIONS_PER_S") as caught:
        item.enter()

    assert caught.value.retry_after_s == pytest.approx(0.25)
    time.now += caught.value.retry_after_s
    assert enters(item)


def test_who_was_refused_has_used_up_nothing():
    time = Time()
    item = allowance(time, operations_per_s=1, operations_burst=1)
    assert enters(item)
    assert not any(enters(item) for _ in range(100))
    time.now += 1
    assert enters(item)


def test_a_batch_larger_than_the_bucket_is_let_in_when_that_is_full():
    time = Time()
    item = allowance(time, operations_per_s=10, operations_burst=5)

    assert enters(item, 20)
    assert not enters(item, 1)
    time.now += 1.6
    assert enters(item, 1)


def test_so_many_at_the_same_time():
    item = allowance(Time(), operations_in_flight_max=2)
    item.enter()
    item.enter()
    with pytest.raises(RateLimitedError, match="TENANCY_FREE_OPERATIONS_IN_FLIGHT_MAX"):
        item.enter()
    item.leave()
    item.enter()
    assert item.under_way == 2
    # A batch that is larger comes in when nothing else is under way.
    item.leave(2)
    item.enter(50)
    assert item.under_way == 50


def test_large_results_count_as_more_operations():
    time = Time()
    item = allowance(time, operations_per_s=10, operations_burst=5)
    item.charge(1023)
    assert [enters(item) for _ in range(6)] == [True] * 5 + [False]
    time.now += 100
    item.charge(1024 * 25)
    assert not enters(item)
    time.now += 2.1
    assert enters(item)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), max_size=60),
    st.floats(0.5, 50),
    st.integers(1, 20),
)
def test_never_more_than_the_burst_and_the_rate_allow(arrivals, rate, burst):
    time = Time()
    item = allowance(time, operations_per_s=rate, operations_burst=max(burst, 4))
    began, entered = time.now, 0
    for pause_s, operations in arrivals:
        time.now += pause_s
        if enters(item, operations):
            entered += operations
        assert entered <= max(burst, 4) + (time.now - began) * rate + 1e-6


def test_what_was_sent_is_remembered_as_long_as_there_is_room():
    known = Allowances(2)
    limits = TierLimits()
    first = known.of(TenantNo(1), TenantType.FREE, limits)

    assert known.of(TenantNo(1), TenantType.FREE, limits) is first
    assert known.of(TenantNo(1), TenantType.FREE, TierLimits(locks_max=5)) is not first
    for number in range(2, 5):
        known.of(TenantNo(number), TenantType.FREE, limits)
    assert len(known._known) == 2
