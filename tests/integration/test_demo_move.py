"""The chapter of the demonstration in which an airline moves, with one that is small."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console
from support.http_api import HttpApi, MakeApi
from support.running_api import RunningApi

from tenancy.data_isolation.core import IsolationLevel
from tenancy.data_isolation.serve import demo_move
from tenancy.data_isolation.serve.demo_data import COLUMNS, Airline, Row
from tenancy.data_isolation.serve.demo_load import inserts, migrations
from tenancy.data_isolation.serve.demo_move import MoveInUse, Traffic
from tenancy.data_isolation.serve.demo_questions import Findings

_FLIGHTS = 60


def _row(table: str, **values: object) -> Row:
    return dict.fromkeys(COLUMNS[table]) | values


@pytest.fixture
def airline() -> Airline:
    found = Airline("ZZ", "Small Air")
    found.rows["airports"] = [
        _row("airports", faa=name, name=f"{name} airport", lat="40.5", lon="-74.25", alt=12)
        for name in ("EWR", "SJU")
    ]
    found.rows["planes"] = [
        _row("planes", tailnum="N1", type="jet", manufacturer="BOEING", model="737", engines=2)
        | {"seats": 150, "engine": "Turbo-fan"}
    ]
    found.rows["weather"] = [
        _row("weather", origin="EWR", time_hour="2013-01-01T05:00:00Z", precip="0", visib="2.5")
    ]
    found.rows["flights"] = [
        _row("flights", id=number, month=number % 12 + 1, day=3, sched_dep_time=515, dep_delay=2)
        | {"dep_time": 517, "sched_arr_time": 819, "arr_delay": number, "flight": 1545}
        | {"tailnum": "N1", "origin": "EWR", "dest": "SJU", "distance": 1608}
        | {"time_hour": "2013-01-01T05:00:00Z"}
        for number in range(1, _FLIGHTS + 1)
    ]
    return found


@pytest.fixture
async def loaded(make_api: MakeApi, airline: Airline, monkeypatch: pytest.MonkeyPatch) -> HttpApi:
    """The interface with the airline in its shared tables."""
    monkeypatch.setattr(demo_move, "_QUIET_S", 0.1)
    api = await make_api(
        move_poll_s=0.05, move_follow_s=0.05, move_warm_ms=10, placement_refresh_ms=50
    )
    for body in migrations():
        done = await api.admin.post("/v1/schema/migrations", json=body)
        assert done.status_code == 201, done.text
    own = await api.tenant(airline.tenant_id, "row")
    for _, statement, chunk in inserts(airline):
        path = f"/v1/tenants/{airline.tenant_id}/query"
        done = await own.post(path, json={"query": statement, "params": [chunk]})
        assert done.json()["row_count"] == len(chunk), done.text
    return api


async def test_an_airline_moves_in_use_and_comes_back(loaded: HttpApi, airline: Airline):
    loaded.engine.moves.work()
    own = await loaded.client(await loaded.key(airline.tenant_id))
    told, findings = io.StringIO(), Findings()
    console = Console(file=told, width=100)
    chapter = MoveInUse(loaded.admin, own, airline, console=console, findings=findings)

    legs = await chapter.run(IsolationLevel.ROW)

    assert findings.differences == []
    assert findings.compared > 20
    assert [leg.words for leg in legs] == ["row to schema", "schema to database", "database to row"]
    for leg in legs:
        assert (leg.errors, leg.differences) == (0, 0)
        assert leg.rows >= _FLIGHTS
        assert min(leg.bytes, leg.seconds, leg.pause_ms, leg.requests) > 0
    lines = told.getvalue().splitlines()
    assert len(lines) == 5
    assert all(line.endswith("0 errors, all equal") for line in lines[1:-1])
    left = await own.post(
        f"/v1/tenants/{airline.tenant_id}/query", json={"query": "select count(*) from planes"}
    )
    assert left.json()["rows"] == [[1]]


#: What spoils it, what takes that back, and what is found.
_FAULTS = [
    (
        "delete from planes where tailnum = 'W0-000001'",
        demo_move._BUY.replace("$1", "'W0-000001'"),
        "what was written",
    ),
    (
        "update planes set seats = seats + 1 where tailnum = 'W1-000000'",
        "update planes set seats = seats - 1 where tailnum = 'W1-000000'",
        "what was written",
    ),
    (
        demo_move._BUY.replace("$1", "'W0-9'"),
        "delete from planes where tailnum = 'W0-9'",
        "what was written",
    ),
    (
        "update flights set dep_delay = 3 where id = 7",
        "update flights set dep_delay = 2 where id = 7",
        "flights, cancelled",
    ),
]


async def test_what_is_lost_doubled_or_changed_is_found(loaded: HttpApi, airline: Airline):
    own = await loaded.client(await loaded.key(airline.tenant_id))
    path = f"/v1/tenants/{airline.tenant_id}/query"
    findings = Findings()
    traffic = Traffic(own, airline, findings)
    async with traffic.flowing():
        while traffic.requests < 60:
            await asyncio.sleep(0.01)
    await traffic.check("nothing")
    assert findings.differences == []

    for fault, mend, found in _FAULTS:
        assert (await own.post(path, json={"query": fault})).json()["row_count"] == 1
        await traffic.check("a fault")
        assert findings.differences[0].startswith(found), fault
        assert (await own.post(path, json={"query": mend})).json()["row_count"] == 1
        findings.differences.clear()
        await traffic.check("mending")
        assert findings.differences == []


async def test_an_error_that_a_client_sees_is_a_finding(loaded: HttpApi, airline: Airline):
    findings = Findings()
    traffic = Traffic(loaded.anonymous, airline, findings)
    await traffic.check("nothing")
    assert traffic.errors == traffic.requests > 0
    assert "expected '200', got '401" in findings.differences[0]


async def test_loading_refuses_what_means_nothing(running: RunningApi):
    for arguments in (
        ("demo", "--load", "zz"),
        ("demo", "--level", "schema"),
        ("demo", "--json"),
    ):
        said = await running.run(*arguments, status=2)
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
