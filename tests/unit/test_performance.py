"""Measurements: percentiles, rates, and how they compare with targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import errors
from tenancy.data_isolation.core.performance import (
    Outcome,
    Performance,
    PerformanceLog,
    outcome_of,
)
from tenancy.data_isolation.core.service_levels import checked_targets, compare

DURATIONS = st.lists(st.floats(1e-5, 100), min_size=1, max_size=200)


def measured(durations: list[float]) -> Performance:
    performance = Performance()
    for duration in durations:
        performance.record(Outcome.DONE, duration)
    return performance


@given(DURATIONS, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_right_within_three_percent(durations, share):
    exact = sorted(durations)[max(1, -int(-share * len(durations) // 1)) - 1] * 1e3

    assert measured(durations).percentile_ms(share) == pytest.approx(exact, rel=0.03)


@given(DURATIONS, DURATIONS)
def test_two_measurements_added_are_one_of_both(left, right):
    added = measured(left)
    added.add(measured(right))
    both = measured(left + right)

    assert added.summary(1)["latency_ms"] == pytest.approx(both.summary(1)["latency_ms"])
    assert added.percentile_ms(0.95) == both.percentile_ms(0.95)
    assert added.operations == both.operations


def test_nothing_measured_is_told_as_none():
    summary = Performance().summary(10)

    assert summary.pop("operations") == 0
    assert summary.pop("throughput_ops_sec") == 0
    assert set(summary.values()) == {None}


def test_rates_leave_out_what_is_the_callers_own_doing():
    performance = Performance()
    for outcome, times in (
        (Outcome.DONE, 5),
        (Outcome.REFUSED, 2),
        (Outcome.FAILED, 1),
        (Outcome.UNAVAILABLE, 2),
    ):
        for _ in range(times):
            performance.record(outcome, 0.001)

    assert performance.error_rate() == pytest.approx(0.3)
    assert performance.availability_percentage() == pytest.approx(80)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.ConstraintError(), Outcome.REFUSED),
        (errors.ResultTooLargeError(), Outcome.REFUSED),
        (errors.TenantNotFoundError(), Outcome.REFUSED),
        (errors.StatementTimeoutError(), Outcome.FAILED),
        (errors.OverloadedError(), Outcome.FAILED),
        (errors.TenancyError(), Outcome.FAILED),
        (errors.ServerUnavailableError(), Outcome.UNAVAILABLE),
        (errors.OutcomeUnknownError(), Outcome.UNAVAILABLE),
    ],
)
def test_an_error_tells_how_an_operation_ended(error, outcome):
    assert outcome_of(error) is outcome


def test_a_log_keeps_its_last_intervals():
    log = PerformanceLog(intervals_max=2, now_s=0)
    for number in range(1, 5):
        for _ in range(number):
            log.present.record(Outcome.DONE, 0.001)
        log.cut(number * 10, "then")
    total, elapsed_s = log.lately(45)

    assert (total.operations, elapsed_s) == (3 + 4, 25)
    assert log.best_throughput_ops_s(45) == pytest.approx(0.4)


def compared(targets: dict[str, float], performance: Performance, rate: float | None) -> dict:
    return {name: item["met"] for name, item in compare(targets, performance, rate).items()}


def test_targets_are_met_or_missed_by_what_was_measured():
    performance = measured([0.010] * 99 + [0.5])
    performance.record(Outcome.UNAVAILABLE, 0.01)
    targets = {"latency_ms": 50, "availability_percentage": 99.99, "error_rate": 0.05}

    assert compared(targets, performance, 10) == {
        "latency_ms": True,
        "availability_percentage": False,
        "error_rate": True,
    }
    assert compared({"latency_ms": 5}, performance, 10) == {"latency_ms": False}


def test_a_rate_below_the_target_is_missed_only_when_operations_had_to_wait():
    performance = measured([0.01])
    assert compared({"throughput_ops_sec": 2_000}, performance, 10) == {"throughput_ops_sec": None}

    performance.waited = 1
    assert compared({"throughput_ops_sec": 2_000}, performance, 10) == {"throughput_ops_sec": False}
    assert compared({"throughput_ops_sec": 2_000}, performance, 2e3) == {"throughput_ops_sec": True}


def test_nothing_measured_meets_and_misses_nothing():
    targets = dict.fromkeys(
        ("latency_ms", "throughput_ops_sec", "availability_percentage", "error_rate"), 0.5
    )

    assert set(compared(targets, Performance(), None).values()) == {None}


@pytest.mark.parametrize(
    "targets",
    [
        {"latency": 50},
        {"latency_ms": -1},
        {"latency_ms": "fast"},
        {"latency_ms": float("nan")},
        {"latency_ms": float("inf")},
        {"error_rate": 1.5},
        {"availability_percentage": 101},
        {"throughput_ops_sec": True},
    ],
)
def test_a_target_that_cannot_be_is_refused_by_name(targets):
    with pytest.raises(errors.SettingError, match=f"x: .*{next(iter(targets))}"):
        checked_targets(targets, "x")
