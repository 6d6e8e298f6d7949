"""Adding up what operations take: each once, in its place, and no more than there is room for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.settable_clock import SettableClock

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import (
    ConstraintError,
    OverloadedError,
    PlacementChangedError,
    RateLimitedError,
    ServerUnavailableError,
)
from tenancy.data_isolation.core.types import IsolationLevel, QueryResult, StatementKind
from tenancy.data_isolation.engine.measured_windows import OTHER, UNREAD, MeasuredWindows
from tenancy.data_isolation.engine.process_usage import ProcessUsage, usage
from tenancy.data_isolation.engine.ticket import Ticket

NOW_S = 50.0
RESULT = QueryResult(columns=(), rows=[[1], [2]], row_count=2)


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All flights land at `NOW_S`."""
    monkeypatch.setattr("tenancy.data_isolation.engine.measured_windows.monotonic", lambda: NOW_S)


def made(**settings: Any) -> MeasuredWindows:
    return MeasuredWindows(Settings(**settings), SettableClock())


def route(number: int = 1, epoch: int = 1, level: IsolationLevel = IsolationLevel.ROW) -> Any:
    return SimpleNamespace(
        tenant=SimpleNamespace(tenant_no=number, tenant_id=f"t-{number}"),
        placement=SimpleNamespace(epoch=epoch, level=level, server="main"),
    )


def ticket(way: Any, fingerprint: str = "f", began_s: float = NOW_S - 4) -> Ticket:
    statement: Any = SimpleNamespace(
        fingerprint=fingerprint,
        kind=StatementKind.READ,
        tables=frozenset({"users"}),
        plain=True,
        returns_rows=True,
    )
    placement, limits = way.placement, None
    made = Ticket("key", way.tenant.tenant_no, placement.epoch, limits=limits, statement=statement)
    made.route, made.began_s, made.result_bytes = way, began_s, 7
    return made


def cells(windows: MeasuredWindows) -> dict[tuple[Any, str], Any]:
    return {(tenant.tenant_id, cell.fingerprint): cell for tenant, cell in windows.cut().cells()}


async def test_a_flight_is_divided_among_its_operations():
    windows, way = made(), route()
    flight = [ticket(way, began_s=NOW_S - 4), ticket(way, began_s=NOW_S - 2)]
    flight += [ticket(way, "g"), ticket(way)]
    flight[0].answer(RESULT)
    flight[1].refuse(ConstraintError("x", "23505"))
    flight[2].answer(RESULT)  # And the last one waits for another flight.

    windows.land(None, flight, NOW_S - 1)

    found = cells(windows)
    cell = found["t-1", "f"]
    assert (cell.operations, cell.refused, cell.rows, cell.result_bytes) == (2, 1, 2, 14)
    assert (cell.latency_s, cell.latency_max_s) == (6, 4)
    assert (cell.queue_s, cell.queue_max_s) == (4, 3)
    assert cell.busy_s == 0.5
    assert sum(cell.latencies.values()) == 2
    assert (cell.kind, cell.tables) == ("read", ("users",))
    assert found["t-1", "g"].operations == 1


async def test_an_operation_is_noted_once():
    windows, way = made(), route()
    one, gone = ticket(way), ticket(way)
    one.answer(RESULT)
    gone.future.cancel()

    for _ in range(2):
        windows.land(None, [one, gone], NOW_S - 1)
        windows.end(one, OverloadedError())
        windows.end(gone, None)
        windows.finish([one], NOW_S - 1, [RESULT])

    cell = cells(windows)["t-1", "f"]
    assert (cell.operations, cell.cancelled, cell.failed) == (2, 1, 0)


async def test_what_may_be_tried_again_is_not_noted_until_it_is_given_up():
    windows, way = made(), route()
    moved = ticket(way)
    moved.refuse(PlacementChangedError("it moved"))

    windows.land(None, [moved], NOW_S - 1)
    assert cells(windows) == {}

    windows.turn_away(way, PlacementChangedError("it moved"))
    assert cells(windows)["t-1", UNREAD].failed == 1


async def test_operations_end_without_a_flight():
    windows, way = made(), route()
    windows.end(ticket(way), OverloadedError())
    windows.turn_away(way, RateLimitedError("slow down"), 3)
    windows.finish([ticket(way, "g"), ticket(way, "g")], NOW_S - 1, [RESULT, RESULT])
    windows.finish([ticket(way, "h")], NOW_S - 1, ServerUnavailableError("gone"))
    windows.hit(way, ticket(way, "c").statement, 0.001, 5)

    found = cells(windows)
    assert (found["t-1", "f"].operations, found["t-1", "f"].failed) == (1, 1)
    assert (found["t-1", UNREAD].operations, found["t-1", UNREAD].refused) == (3, 3)
    assert (found["t-1", "g"].rows, found["t-1", "g"].busy_s) == (4, 1.0)
    assert found["t-1", "h"].unavailable == 1
    assert (found["t-1", "c"].cache_hits, found["t-1", "c"].rows) == (1, 5)


async def test_a_tenant_that_moves_has_cells_at_both_places():
    windows = made()
    for epoch, level in ((1, IsolationLevel.ROW), (2, IsolationLevel.SCHEMA)):
        windows.end(ticket(route(epoch=epoch, level=level)), None)

    levels = [(tenant.level, cell.operations) for tenant, cell in windows.cut().cells()]
    assert sorted(levels) == [("row", 1), ("schema", 1)]


async def test_kinds_of_statement_and_tenants_are_bounded():
    windows = made(measured_fingerprints_max=20, tenant_measured_fingerprints_max=5)
    for number in range(100):
        for kind in range(10):
            windows.end(ticket(route(number + 1), f"f{kind}"), None)
        windows.turn_away(route(number + 1), RateLimitedError("slow down"))

    window = windows.cut()
    found = [(tenant.tenant_id, cell) for tenant, cell in window.cells()]
    assert len(found) <= 21
    assert sum(cell.operations for _, cell in found) == 1_100
    assert {cell.fingerprint for name, cell in found if name == "t-1"} >= {OTHER, "f0"}
    nobody = [cell for name, cell in found if name is None]
    assert sum(cell.operations for cell in nobody) > 500
    # The next window begins with nothing, so those tenants have their turn.
    windows.end(ticket(route(99)), None)
    assert ("t-99", "f") in cells(windows)


async def test_a_tenant_that_is_forgotten_is_in_no_cell():
    windows = made()
    for number, epoch in ((1, 1), (1, 2), (2, 1)):
        windows.end(ticket(route(number, epoch)), None)

    windows.forget(1)

    assert {name for name, _ in cells(windows)} == {"t-2"}


async def test_what_the_process_used_goes_to_those_that_were_looked_at():
    windows, way = made(), route()
    windows._usage.of = lambda _: ProcessUsage(0.5, 900, 300)
    before = [windows.depart(None) for _ in range(31)]
    assert [item is not None for item in before] == [False] * 30 + [True]
    flight = [ticket(way), ticket(way)]
    for item in flight:
        item.answer(RESULT)

    windows.land(None, flight, NOW_S - 1, ProcessUsage(0.1, 100, 100))

    cell = cells(windows)["t-1", "f"]
    assert (cell.sampled, cell.cpu_s) == (2, pytest.approx(0.4))
    assert (cell.read_bytes, cell.written_bytes) == (800, 200)


def test_the_system_tells_what_a_process_has_used_and_nothing_of_one_that_is_not_there():
    import os

    found = usage(os.getpid())
    assert found is not None
    assert found.since(found) == ProcessUsage(0.0, 0, 0)
    assert usage(2**22 + 1) is None
