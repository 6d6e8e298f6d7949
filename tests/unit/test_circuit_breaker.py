"""The circuit breaker's states, with the time given by hand."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import errors
from tenancy.data_isolation.core.circuit_breaker import (
    BreakerLimits,
    BreakerState,
    CircuitBreaker,
    is_infrastructure_failure,
)

LIMITS = BreakerLimits(failures_max=3, window_s=10, open_s=5)


def opened(at_s: float = 0) -> CircuitBreaker:
    breaker = CircuitBreaker(LIMITS)
    assert [breaker.failed(at_s) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it():
    assert opened().state(0) is BreakerState.OPEN
    assert opened().openings == 1


def test_a_success_in_between_keeps_it_closed():
    breaker = CircuitBreaker(LIMITS)
    for _ in range(10):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded(0)

    assert breaker.state(0) is BreakerState.CLOSED


def test_failures_that_are_far_apart_keep_it_closed():
    breaker = CircuitBreaker(LIMITS)

    assert not any(breaker.failed(now) for now in (0, 5.1, 10.2, 15.3))
    assert breaker.failed(16)


def test_open_it_admits_nothing_and_tells_for_how_long():
    breaker = opened()

    assert not breaker.admit(4.9)
    assert breaker.retry_after_s(4) == 1


def test_while_it_is_open_late_results_change_nothing():
    breaker = opened()

    assert not breaker.succeeded(1)
    assert not breaker.failed(4)
    assert breaker.state(4.9) is BreakerState.OPEN
    assert breaker.state(5) is BreakerState.HALF_OPEN


def test_half_open_it_admits_one_attempt_at_a_time():
    breaker = opened()

    assert [breaker.admit(5), breaker.admit(5), breaker.admit(9.9)] == [True, False, False]
    assert breaker.retry_after_s(6) == 4


def test_an_attempt_that_never_reports_back_makes_room_for_the_next():
    breaker = opened()
    breaker.admit(5)

    assert breaker.admit(10)
    assert not breaker.admit(10)


def test_a_success_closes_it_and_a_failure_opens_it_again():
    lucky, unlucky = opened(), opened()
    lucky.admit(5)
    unlucky.admit(5)

    assert lucky.succeeded(6)
    assert unlucky.failed(6)
    assert lucky.state(6) is BreakerState.CLOSED
    assert unlucky.state(6) is BreakerState.OPEN
    assert unlucky.retry_after_s(6) == 5
    assert unlucky.openings == 2


def test_after_closing_it_counts_from_zero():
    breaker = opened()
    breaker.succeeded(5)

    assert [breaker.failed(6) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (errors.ServerUnavailableError(), True),
        (errors.DiskFullError(), True),
        (errors.OutcomeUnknownError(), True),
        (errors.EmbeddedServerError(), True),
        (errors.PlacementChangedError(), False),
        (errors.LoginRefusedError(), False),
        (errors.OverloadedError(), False),
        (errors.StatementTimeoutError(), False),
        (errors.ConstraintError(), False),
        (errors.ConflictError(), False),
        (ValueError(), False),
    ],
)
def test_only_failures_of_the_infrastructure_count(error, counts):
    assert is_infrastructure_failure(error) is counts
