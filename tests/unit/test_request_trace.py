"""How many requests may be traced."""

from __future__ import annotations

from tenancy.data_isolation.serve.request_trace import TraceBudget


def taken(budget: TraceBudget, times: int) -> int:
    return sum(budget.take() for _ in range(times))


def test_so_many_in_a_second_and_as_many_at_once():
    now = 100.0
    budget = TraceBudget(10.0, lambda: now)

    assert taken(budget, 50) == 10
    now += 0.5
    assert taken(budget, 50) == 5
    now += 1_000.0
    assert taken(budget, 50) == 10


def test_fewer_than_one_in_a_second_is_one_at_a_time():
    now = 100.0
    budget = TraceBudget(0.1, lambda: now)

    assert taken(budget, 5) == 1
    now += 9.0
    assert taken(budget, 5) == 0
    now += 1.0
    assert taken(budget, 5) == 1
