"""Tenants through real actors on real PostgreSQL: routing, isolation, activation, limits."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime, timedelta

import pytest
import ray
from support.orders import SCHEMA, make_tenants

from tenancy.data_isolation.actors import ActorGateway, connect
from tenancy.data_isolation.actors.directory import ActorName, dedicated_name
from tenancy.data_isolation.actors.remote import Actors, actor_names, stop_actors
from tenancy.data_isolation.core.errors import (
    ConstraintError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SetupError,
    StatementSyntaxError,
    StatementTimeoutError,
    TenancyError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import Region, ServerName, TenantId
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    TenantContext,
    TenantType,
)
from tenancy.data_isolation.engine.window_reader import read_windows
from tenancy.data_isolation.strategies import OrchestratorConfig, UltraAdvancedStrategyOrchestrator
from tenancy.data_isolation.strategies.base import TenantGateway

SHARED = "tenancy-shared-default-0"
INSERT = "insert into orders (id, note) values ($1, $2)"
SELECT = "select id, note from orders where id = $1"
#: Runs until it is stopped, on any machine.
ENDLESS = "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b"


async def _statistics(client, name="tenancy-shared-default-0"):
    return await Actors(client.settings, client.directory).call(name, "statistics")


async def _until(condition):
    """Ask again until it is so; the test's time limit ends it otherwise."""
    while not await condition():
        pass


async def test_a_handle_gives_object_references(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    handle = connect().tenant("acme")

    ray.get(handle.query.remote(INSERT, [1, "first"]))
    ray.get(handle.execute.remote(Operation(query=INSERT, params=[2, "second"])))
    both = ray.get(
        handle.batch.remote([Operation(query=SELECT, params=[number]) for number in (1, 2)])
    )

    assert ray.get(handle.query.remote(SELECT, [1])).rows == [[1, "first"]]
    assert [result.rows for result in both] == [[[1, "first"]], [[2, "second"]]]


async def test_a_handle_raises_errors_of_ours_with_clear_words(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    handle = connect().tenant("acme")
    ray.get(handle.query.remote(INSERT, [1, "first"]))

    with pytest.raises(TenancyError) as raised:
        ray.get(handle.query.remote(INSERT, [1, "again"]))

    error = raised.value
    assert isinstance(error, ConstraintError)
    assert (error.sqlstate, error.status) == ("23505", 409)
    assert "Traceback" not in str(error)
    assert str(error) == error.detail


async def test_a_client_raises_the_plain_errors(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await client.execute("acme", INSERT, [1, "first"])

        with pytest.raises(ConstraintError) as constraint:
            await client.execute("acme", INSERT, [1, "again"])
        with pytest.raises(StatementSyntaxError):
            await client.execute("acme", "selekt 1")

        copy = pickle.loads(pickle.dumps(constraint.value))
        assert type(copy) is type(constraint.value) is ConstraintError
        assert copy.sqlstate == "23505"


async def test_a_tenant_that_is_unknown_or_none_at_all_is_a_clear_error(start):
    await start()
    async with connect() as client:
        with pytest.raises(TenantNotFoundError):
            client.tenant("nobody")
        with pytest.raises(InvalidInputError):
            client.tenant("No Tenant")
        with pytest.raises(NotFoundError):
            await client.execute("nobody", "select 1")
        with pytest.raises(InvalidInputError):
            await client.execute("No Tenant", "select 1")


async def test_two_tenants_in_one_actor_do_not_mix(start):
    running = await start(shared_actors=1)
    await make_tenants(running.engine, "acme", "globex")
    async with connect() as client:

        async def write_and_read(tenant, number):
            await client.execute(tenant, INSERT, [number, f"{tenant} {number}"])
            return await client.execute(tenant, SELECT, [number])

        results = await asyncio.gather(
            *(
                write_and_read(tenant, number)
                for number in range(150)
                for tenant in ("acme", "globex")
            )
        )

        assert [result.rows for result in results] == [
            [[number, f"{tenant} {number}"]]
            for number in range(150)
            for tenant in ("acme", "globex")
        ]
        for tenant in ("acme", "globex"):
            notes = await client.execute(tenant, "select note from orders")
            assert {note.split()[0] for (note,) in notes.rows} == {tenant}
            assert notes.row_count == 150
        assert (await _statistics(client))["active_tenants"] == 2


async def test_concurrent_operations_share_calls(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await client.execute("acme", INSERT, [1, "x"])
        before = (await _statistics(client))["calls"]

        results = await asyncio.gather(*(client.execute("acme", SELECT, [1]) for _ in range(500)))

        calls = (await _statistics(client))["calls"] - before
        assert all(result.rows == [[1, "x"]] for result in results)
        assert 0 < calls <= 125


async def test_on_the_actor_s_machine_operations_need_no_calls_of_ray(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client, running.client(actor_local_connections_max=0) as other:
        for each, linked in ((client, [SHARED]), (other, [])):
            assert (await each.execute("acme", "select 1")).rows == [[1]]
            assert list(each.gateway._actors._links) == linked
        link = client.gateway._actors._links[SHARED]
        # When it breaks off without the actor, there is another one.
        link.close()
        assert (await client.execute("acme", "select 2")).rows == [[2]]
        assert client.gateway._actors._links[SHARED] is not link
    assert client.gateway._actors._links == {}


async def test_an_actor_that_takes_no_connections_is_called_by_ray(start):
    running = await start(actor_local_connections_max=0)
    await make_tenants(running.engine, "acme")
    # The client would use one.
    async with running.client(actor_local_connections_max=8) as client:
        assert (await client.execute("acme", "select 1")).rows == [[1]]
        assert client.gateway._actors._links == {}


async def test_concurrent_first_uses_activate_a_tenant_once(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await asyncio.gather(*(client.execute("acme", "select 1") for _ in range(200)))

        assert (await _statistics(client))["activations"] == 1


async def test_an_idle_tenant_is_passivated_and_comes_back(start):
    running = await start(tenant_idle_s=0.05)
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await client.execute("acme", INSERT, [1, "x"])

        async def passive():
            return (await _statistics(client))["active_tenants"] == 0

        await _until(passive)

        assert (await client.execute("acme", SELECT, [1])).rows == [[1, "x"]]
        assert (await _statistics(client))["activations"] == 2


async def test_an_actor_keeps_no_more_tenants_active_than_it_may(start):
    running = await start(actor_tenants_max=2)
    names = [f"tenant-{number}" for number in range(5)]
    await make_tenants(running.engine, *names)
    async with connect() as client:
        for name in (*names, *names):
            await client.execute(name, "select 1")

        found = await _statistics(client)
        assert found["active_tenants"] == 2
        assert found["passivations"] == 8


async def test_a_slow_operation_holds_up_no_other(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        slow = asyncio.create_task(client.execute("acme", ENDLESS))
        fast = [client.execute("acme", "select 1") for _ in range(50)]

        results = await asyncio.gather(*fast)

        assert all(result.rows == [[1]] for result in results)
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_one_who_stops_waiting_stops_the_statement_in_postgresql(start, install):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with install.connected() as connection, connect() as client:
        slow = asyncio.create_task(client.execute("acme", ENDLESS))

        async def runs():
            return await connection.fetchval(
                "select count(*) from pg_stat_activity "
                "where state = 'active' and query like '%generate_series%' and pid <> $1",
                connection.get_server_pid(),
            )

        await _until(runs)

        slow.cancel()

        async def stopped():
            return not await runs()

        await _until(stopped)
        assert (await client.execute("acme", "select 1")).rows == [[1]]


async def test_a_deadline_stops_the_statement_and_only_that(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        late, fine = await asyncio.gather(
            client.gateway.execute(TenantId("acme"), Operation(query=ENDLESS, deadline_s=0.2)),
            client.execute("acme", "select 1"),
            return_exceptions=True,
        )

        assert isinstance(late, StatementTimeoutError)
        assert fine.rows == [[1]]


async def test_a_full_queue_answers_at_once(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with running.client(
        actor_queued_operations_max=10, actor_sent_operations_max=1
    ) as client:
        slow = asyncio.create_task(client.execute("acme", ENDLESS))
        while not any(sent["operations"] for sent in client.gateway.statistics().values()):
            await asyncio.sleep(0)

        others = [asyncio.create_task(client.execute("acme", "select 1")) for _ in range(30)]
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)

        refused = [other.exception() for other in others if other.done()]
        assert len(refused) == 20
        assert {type(error) for error in refused} == {OverloadedError}
        assert all(error.retry_after_s for error in refused)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        results = await asyncio.gather(*others[:10])
        assert all(result.rows == [[1]] for result in results)


async def test_the_status_of_a_tenant_is_a_gate(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await client.execute("acme", "select 1")

        await client.gateway.suspend_tenant(TenantId("acme"))
        with pytest.raises(TenantSuspendedError):
            await client.execute("acme", "select 1")
        await client.gateway.resume_tenant(TenantId("acme"))

        assert (await client.execute("acme", "select 1")).rows == [[1]]


async def test_tenants_are_created_listed_and_deleted_through_actors(start):
    running = await start()
    await running.engine.fleet.register(SCHEMA)
    await running.engine.fleet.apply()
    async with connect() as client:
        gateway = client.gateway
        assert isinstance(gateway, TenantGateway)
        for name in ("acme", "globex"):
            made = await gateway.create_tenant(
                TenantContext(tenant_id=name), level=IsolationLevel.ROW
            )
            assert made.tenant_id == name

        assert [tenant.tenant_id for tenant in await gateway.tenants()] == ["acme", "globex"]
        assert (await gateway.strategy_counts())[StrategyName.ROW_LEVEL] == 2
        assert (await gateway.tenant(TenantId("acme"))).placement.level is IsolationLevel.ROW
        await gateway.delete_tenant(TenantId("acme"))
        with pytest.raises(TenantNotFoundError):
            await client.execute("acme", "select 1")


async def test_the_orchestrator_works_through_actors(start):
    running = await start()
    await make_tenants(running.engine)
    async with connect() as client:
        orchestrator = UltraAdvancedStrategyOrchestrator(OrchestratorConfig())
        await orchestrator.initialize(client.engine_config)
        context = TenantContext(tenant_id="acme", isolation_level=IsolationLevel.ROW)

        await orchestrator.isolate_data(
            context, "create_order", {"query": INSERT, "params": [1, "x"]}
        )
        result = await orchestrator.isolate_data(
            context, "get_order", {"query": SELECT, "params": [1]}
        )
        await orchestrator.cleanup()

        assert result["rows"] == [[1, "x"]]
        assert result["orchestrator"]["selected_strategy"] == "row_level"
        # What belongs to the client is still open.
        assert (await client.execute("acme", "select 1")).rows == [[1]]


async def test_hybrid_tenants_work_through_actors(start):
    running = await start()
    await make_tenants(running.engine, "plain")
    async with connect() as client:
        orchestrator = UltraAdvancedStrategyOrchestrator(OrchestratorConfig())
        await orchestrator.initialize(client.engine_config)
        context = TenantContext(tenant_id="start", metadata={"workload": "dynamic"})
        made = await orchestrator.isolate_data(
            context, "create_order", {"query": INSERT, "params": [1, "x"]}
        )
        size = await client.gateway.tenant_size(TenantId("start"), rows_max=10)
        await orchestrator.cleanup()

        assert made["orchestrator"]["selected_strategy"] == "hybrid"
        assert (size.rows, size.complete) == (1, True)
        assert (await client.execute("start", SELECT, [1])).rows == [[1, "x"]]


async def test_an_enterprise_tenant_has_a_process_of_its_own(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    await make_tenants(running.engine, "bigcorp", kind=TenantType.ENTERPRISE)
    async with connect() as client:
        # Many at once, of several clients: it is made once.
        others = [ActorGateway(client.directory, client.settings) for _ in range(2)]
        await asyncio.gather(
            *(
                gateway.execute(TenantId("bigcorp"), Operation(query="select 1"))
                for gateway in (client.gateway, *others)
                for _ in range(10)
            ),
            client.execute("acme", "select 1"),
        )

        own = dedicated_name((await client.gateway.tenant(TenantId("bigcorp"))).tenant_no)
        assert sorted(actor_names()) == [own, "tenancy-shared-default-0"]
        mine, shared = await _statistics(client, own), await _statistics(client)
        assert mine["pid"] != shared["pid"]
        assert mine["operations"] == 30
        assert ray.get(client.tenant("bigcorp").query.remote("select 1")).rows == [[1]]
        assert (await _statistics(client, own))["operations"] == 31
        await asyncio.gather(*(other.close() for other in others))


async def test_when_there_are_enough_dedicated_actors_a_shared_one_serves(start):
    running = await start(dedicated_actors_max=1)
    await make_tenants(running.engine, "big-1", "big-2", kind=TenantType.ENTERPRISE)
    async with connect() as client:
        for name in ("big-1", "big-2", "big-2"):
            assert (await client.execute(name, "select 1")).rows == [[1]]

        assert len(actor_names()) == 2


async def test_a_tenant_named_in_the_directory_gets_its_own_actor_while_in_use(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await client.execute("acme", INSERT, [1, "x"])
        assert len(actor_names()) == 1

        running.reconfigure(dedicated=frozenset({TenantId("acme")}))

        assert (await client.execute("acme", SELECT, [1])).rows == [[1, "x"]]
        assert len(actor_names()) == 2


async def test_clients_in_other_processes_agree_on_the_actor_of_a_tenant(start):
    await start(shared_actors=2)

    @ray.remote(num_cpus=0)
    def routes(names):
        directory = connect().directory
        return [directory.shared_actor(name) for name in names]

    names = [f"tenant-{number}" for number in range(200)]
    mine = [connect().directory.shared_actor(TenantId(name)) for name in names]

    assert ray.get([routes.remote(names) for _ in range(2)]) == [mine, mine]
    assert len(set(mine)) == 2


async def test_actors_of_a_region_run_on_its_nodes_and_tenants_of_it_are_sent_there(start):
    running = await start()
    await running.engine.catalog.add_server(ServerName("main"), Region("here"))
    directory = running.configuration.directory
    local = ActorName("tenancy-shared-here-0")
    running.reconfigure(shared={**directory.shared, Region("here"): (local,)})
    await make_tenants(running.engine, "acme")
    await make_tenants(running.engine, "globex", region=Region("here"))
    async with connect() as client:
        for name in ("acme", "globex", "globex"):
            assert (await client.execute(name, "select 1")).rows == [[1]]

        sent = {name: counts["operations"] for name, counts in client.gateway.statistics().items()}
        # The first operation went to the computed actor, which named the right one.
        assert sent == {"tenancy-shared-default-0": 2, local: 2}
        assert (await _statistics(client, local))["active_tenants"] == 1


async def test_a_region_without_a_node_is_an_error_and_does_not_hang(start):
    running = await start()

    with pytest.raises(SetupError, match="no node of the Ray cluster is in region 'mars'"):
        running.reconfigure(
            shared={**running.configuration.directory.shared, Region("mars"): ("a",)}
        )


async def test_an_actor_that_ends_in_peace_closes_its_sessions(start, install):
    running = await start()
    await make_tenants(running.engine, "acme")
    client = connect()
    await client.execute("acme", "select 1")
    await client.aclose()
    await running.engine.close()
    async with install.connected() as connection:

        async def sessions():
            return await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = $1 and pid <> $2",
                install.database,
                connection.get_server_pid(),
            )

        assert await sessions() > 0

        stop_actors()

        async def gone():
            return await sessions() == 0

        await _until(gone)


async def test_what_operations_take_is_measured_in_the_actor_and_told_by_it(start):
    running = await start(server_free_disk_min_bytes=1)
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        await asyncio.gather(*(client.execute("acme", SELECT, [number]) for number in range(20)))
        (figures,) = (await client.gateway.figures(5.0)).values()
        assert figures.levels["row"].outcomes["done"] == 20
        assert figures.levels["row"].busy_s > 0

        await client.gateway.delete_tenant(TenantId("acme"))
    stop_actors()
    assert await _rows_of_windows(running.install.settings.home) == []


async def _rows_of_windows(home):
    now = datetime.now(UTC)
    table = read_windows(home, since=now - timedelta(hours=1), until=now)
    return table.to_pylist()
