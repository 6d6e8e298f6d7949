"""Tenants share sessions and flights; what fails for one never works for another."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.engines import known_as_quick, may_travel

from tenancy.data_isolation.core import (
    IsolationLevel,
    Operation,
    QueryResult,
    TenancyError,
    TenantContext,
)
from tenancy.data_isolation.core.errors import PlacementChangedError
from tenancy.data_isolation.engine import time_limit
from tenancy.data_isolation.engine.engine import Engine

_TENANTS = ("a", "b", "c")


@pytest.fixture
async def engine(install):
    """One session for all tenants of level ROW, so that they have to share it."""
    config = dataclasses.replace(
        install.config, settings=dataclasses.replace(install.settings, server_connections_max=1)
    )
    async with await Engine.open(config) as opened:
        await opened.apply_migration(
            "0001_notes", "create table notes (id integer primary key, owner text not null)"
        )
        for name in _TENANTS:
            await opened.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
            await opened.execute(
                name, Operation(query="insert into notes values (1, $1)", params=[name])
            )
        yield opened


_DUPLICATE = "insert into notes values (1, $1)"
_WRITE = "update notes set owner = $1 where id = 1"
_READ = "select owner from notes"


async def test_after_a_failed_statement_a_batch_still_works_for_its_own_tenant(engine):
    for _ in range(3):
        await engine.execute("b", Operation(query=_READ))  # The session is bound to b now.
        outcomes = await engine.execute_batch(
            "a",
            [
                Operation(query=_DUPLICATE, params=["a"]),
                Operation(query=_WRITE, params=["a"]),
                Operation(query=_READ),
            ],
        )
        assert isinstance(outcomes[0], TenancyError)
        assert isinstance(outcomes[1], QueryResult)
        assert outcomes[2].rows == [["a"]]

    assert (await engine.execute("b", Operation(query=_READ))).rows == [["b"]]


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(_TENANTS),
            st.sampled_from([_DUPLICATE, _WRITE, _READ, "select 1 / (id - id), $1 from notes"]),
        ),
        min_size=4,
        max_size=40,
    )
)
def _drawn(calls):
    _drawn.calls.append(calls)


async def test_concurrent_operations_of_tenants_that_fail_and_succeed_stay_apart(engine):
    _drawn.calls = []
    _drawn()
    failed = succeeded = 0
    for calls in _drawn.calls:
        outcomes = await asyncio.gather(
            *(
                engine.execute(
                    tenant, Operation(query=query, params=[tenant] if "$1" in query else [])
                )
                for tenant, query in calls
            ),
            return_exceptions=True,
        )
        for (tenant, query), outcome in zip(calls, outcomes, strict=True):
            failed += isinstance(outcome, TenancyError)
            if query == _READ:
                assert outcome.rows == [[tenant]]
                succeeded += 1
        for tenant in _TENANTS:
            rows = (await engine.execute(tenant, Operation(query="select * from notes"))).rows
            assert rows == [[1, tenant]]
    # Both happened, often, so the check had something to find.
    assert failed > 50
    assert succeeded > 50


async def test_reads_behind_many_that_fail_get_their_own_answers(engine):
    quotient = "select 12 / $1::integer"
    await known_as_quick(engine, "a", quotient, 3)

    outcomes = await asyncio.gather(
        *(engine.execute("a", Operation(query=quotient, params=[n])) for n in 7 * [0] + [4]),
        return_exceptions=True,
    )

    assert [getattr(item, "sqlstate", None) for item in outcomes] == [*7 * ["22012"], None]
    assert outcomes[-1].rows == [[3]]


_MOMENT = "select owner, now()::text from notes"


async def test_reads_of_several_tenants_are_one_transaction_each_with_its_own_rows(
    engine, monkeypatch
):
    monkeypatch.setattr(time_limit, "PATIENCE_S", 30.0)
    for name in _TENANTS:
        # Until the runtime has asked who is about to move, each tenant's fence is asked for first.
        while engine._routes.known(name) is None:
            await engine.execute(name, Operation(query=_MOMENT))
        await known_as_quick(engine, name, _MOMENT)

    asked = 3 * _TENANTS
    results = await asyncio.gather(*(engine.execute(n, Operation(query=_MOMENT)) for n in asked))

    assert [result.rows[0][0] for result in results] == list(asked)
    # One for the tenant that the session was bound to, and one for the others.
    assert len({result.rows[0][1] for result in results}) <= 2


async def test_a_tenant_that_is_closed_keeps_nobody_who_travels_with_it_from_an_answer(
    engine, install
):
    await known_as_quick(engine, "a", _READ)
    closed = (await engine.tenant("b")).tenant_no
    async with install.connected() as admin:
        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", closed)

    asked = 3 * _TENANTS
    outcomes = await asyncio.gather(
        *(engine.execute(name, Operation(query=_READ)) for name in asked), return_exceptions=True
    )

    for name, outcome in zip(asked, outcomes, strict=True):
        if name == "b":
            assert isinstance(outcome, PlacementChangedError)
        else:
            assert outcome.rows == [[name]]


async def test_a_read_that_fails_undoes_what_travels_with_it_and_nothing_more(engine):
    quotient = "select 12 / $1::integer, owner from notes"
    await known_as_quick(engine, "a", quotient, 3)

    asked = [(name, number) for number in (4, 0, 3, 0, 2) for name in _TENANTS]
    outcomes = await asyncio.gather(
        *(engine.execute(name, Operation(query=quotient, params=[n])) for name, n in asked),
        return_exceptions=True,
    )

    for (name, number), outcome in zip(asked, outcomes, strict=True):
        if number:
            assert outcome.rows == [[12 // number, name]]
        else:
            assert outcome.sqlstate == "22012"


async def test_a_tenant_whose_read_fails_makes_nobody_else_s_travel_alone(engine):
    quotient = "select 12 / $1::integer"
    await known_as_quick(engine, "a", quotient, 3)
    with pytest.raises(TenancyError):
        await engine.execute("a", Operation(query=quotient, params=[0]))

    travels = [await may_travel(engine, tenant, quotient, 3) for tenant in _TENANTS]
    assert travels == [False, True, True]
    await known_as_quick(engine, "a", quotient, 3)
