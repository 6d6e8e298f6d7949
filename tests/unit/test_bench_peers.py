"""The comparison with peers counts right answers alone, and tells misses as misses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from peers.pgbench import _script
from peers.summary import Summary
from peers.variants import BY_KEY, VARIANTS
from peers.window import Window, in_batches, in_threads, one_by_one
from peers.work import LONE_TENANT, Work, WrongAnswerError, stored

PAIRS = Work(tenants=20, rows=50).drawn(seed=1)


def _window() -> Window:
    return Window(warm_s=0.0, seconds=0.2)


async def _right(tenant: int, row: int) -> int:
    await asyncio.sleep(0)
    return stored(tenant, row)


def test_keys_are_drawn_the_same_way_each_time_from_all_tenants():
    assert Work(tenants=20, rows=50).drawn(seed=1) == PAIRS
    assert {tenant for tenant, _ in PAIRS} == set(range(1, 21))
    assert {row for _, row in PAIRS} == set(range(1, 51))
    assert {tenant for tenant, _ in Work(tenants=1, rows=50).drawn(seed=1)} == {LONE_TENANT}


async def test_right_answers_are_counted_and_have_their_latencies():
    window = _window()
    await one_by_one(window, _right, PAIRS, in_flight=3)

    told = window.result()
    assert told["ops_per_s"] == len(window.latencies) / 0.2 > 0
    assert 0 < told["p50_ms"] <= told["p99_ms"]
    assert told["errors"] == 0


async def test_a_value_of_another_tenant_stops_the_measurement():
    async def read(tenant: int, row: int) -> int:
        await asyncio.sleep(0)
        return stored(tenant % 20 + 1, row)

    with pytest.raises(ExceptionGroup) as caught:
        await one_by_one(_window(), read, PAIRS, in_flight=3)
    assert caught.group_contains(WrongAnswerError)


async def test_a_batch_that_lacks_an_answer_stops_the_measurement():
    async def read(tenant: int, rows: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [stored(tenant, row) for row in rows[1:]]

    with pytest.raises(ExceptionGroup) as caught:
        await in_batches(_window(), read, PAIRS, in_flight=2, per_call=5)
    assert caught.group_contains(WrongAnswerError)


async def test_errors_are_counted_and_are_no_operations():
    async def read(tenant: int, row: int) -> int:
        raise ConnectionError("gone")

    window = _window()
    await one_by_one(window, read, PAIRS, in_flight=2)

    told = window.result()
    assert told["ops_per_s"] == 0
    assert told["errors"] >= 2
    assert told["error"] == "ConnectionError: gone"


def test_threads_check_values_as_well():
    window = _window()
    in_threads(window, stored, PAIRS, in_flight=5, threads=2)
    assert window.latencies

    with pytest.raises(WrongAnswerError):
        in_threads(_window(), lambda tenant, row: 0, PAIRS, in_flight=5, threads=2)


@pytest.mark.parametrize("secured", [True, False])
def test_pgbench_divides_by_zero_when_a_value_is_wrong(secured):
    text = _script(secured, True, 2, {"tenants": 100, "rows": 500})

    assert text.count("1 / (bal = :t") == 2
    assert text.count("set_config('app.tenant'") == (2 if secured else 0)


def _cell(variant: str, ops_per_s: float, **more: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "tenants": 1,
        "in_flight": 64,
        "repeat": 0,
        "ops_per_s": ops_per_s,
        "p50_ms": 2.0,
        "p99_ms": 5.0,
        "errors": 0,
        "busy": 0.9,
        "steal": 0.01,
        "versions": {},
    } | more


def test_ratios_are_of_medians_and_misses_are_told():
    cells = [_cell("by-hand", rate) for rate in (900, 1_000, 5_000)]
    cells += [_cell("actor-row", rate) for rate in (1, 3_900, 20_000)]
    told = {item.name: item for item in Summary(cells).figures()}

    ratio = told[
        "ours, through actors, level row / asyncpg by hand, pool of 10, 64 in flight, 1 tenant"
    ]
    assert (ratio.value, ratio.met) == (3.9, False)
    assert told["row through the actor, 64 in flight, 1 tenant"].met is False
    assert told["row through the actor, 64 in flight, 1 tenant: p50"].met is True
    assert any("3,900 [1-20,000]" in line for line in Summary(cells).text())


def test_failed_operations_miss_their_goal():
    told = {item.name: item for item in Summary([_cell("by-hand", 1, errors=2)]).figures()}

    assert told["operations that failed"].met is False


def test_names_of_variants_are_their_own():
    assert len(BY_KEY) == len(VARIANTS)
