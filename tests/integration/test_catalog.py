"""The catalog: compare and swap, pages, and what happens when its server goes away."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from support.install import Install

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    MigrationConflictError,
    OperationNotFoundError,
    OutcomeUnknownError,
    OverloadedError,
    PlacementChangedError,
    ServerNotFoundError,
    ServerUnavailableError,
    SetupError,
    TenantExistsError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    Region,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Placement,
    Tenant,
    TenantContext,
    TenantStatus,
    TenantType,
)
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import (
    MigrationRecord,
    NamedOperation,
    NamespaceKind,
    NamespaceRecord,
    NamespaceState,
)

MAIN = ServerName("main")


@pytest.fixture
async def catalog(bare_install: Install) -> AsyncIterator[Catalog]:
    opened = await open_catalog(bare_install)
    yield opened
    await opened.close()


async def open_catalog(bare_install: Install, **changes: int) -> Catalog:
    return await Catalog.open(
        settings=dataclasses.replace(bare_install.settings, **changes),  # type: ignore[arg-type]
        master_key=bare_install.master_key,
        server=bare_install.server_config,
    )


def placement(epoch: int, level: IsolationLevel = IsolationLevel.ROW) -> Placement:
    return Placement(
        level=level,
        server=MAIN,
        database=DatabaseName("tenancy"),
        schema=SchemaName("app"),
        role=RoleName("tenancy_rows"),
        epoch=Epoch(epoch),
    )


async def add(catalog: Catalog, name: str = "acme") -> Tenant:
    return await catalog.add_tenant(TenantContext(tenant_id=name))


# Tenants


async def test_a_tenant_is_kept_with_all_its_properties(catalog: Catalog):
    context = TenantContext(
        tenant_id="acme",
        tenant_type=TenantType.ENTERPRISE,
        region="moon",
        compliance=["HIPAA", "gdpr"],
        metadata={"plan": {"seats": 3}, "größe": None},
    )

    added = await catalog.add_tenant(context)

    assert added == Tenant(
        tenant_id=TenantId("acme"),
        tenant_no=added.tenant_no,
        tenant_type=TenantType.ENTERPRISE,
        status=TenantStatus.CREATING,
        region=Region("moon"),
        compliance=("hipaa", "gdpr"),
        placement=None,
    )
    assert await catalog.tenant(TenantId("acme")) == added
    assert await catalog.tenant_by_number(added.tenant_no) == added
    assert await catalog.metadata(added.tenant_no) == context.metadata


async def test_adding_a_tenant_again_gives_the_same_one_and_others_are_refused(catalog: Catalog):
    first = await add(catalog)
    assert await add(catalog) == first
    for other in (
        TenantContext(tenant_id="acme", tenant_type=TenantType.FREE),
        TenantContext(tenant_id="acme", region="moon"),
        TenantContext(tenant_id="acme", compliance=["gdpr"]),
        TenantContext(tenant_id="acme", metadata={"a": 1}),
    ):
        with pytest.raises(TenantExistsError):
            await catalog.add_tenant(other)


async def test_many_who_add_one_tenant_at_once_get_one(catalog: Catalog):
    tenants = await asyncio.gather(*(add(catalog) for _ in range(20)))

    assert len({tenant.tenant_no for tenant in tenants}) == 1


async def test_metadata_that_json_cannot_carry_is_refused(catalog: Catalog):
    for value in (object(), float("nan"), "\x00"):
        with pytest.raises(InvalidInputError):
            await catalog.add_tenant(TenantContext(tenant_id="acme", metadata={"a": value}))


async def test_an_unknown_tenant_is_told_by_its_name(catalog: Catalog):
    with pytest.raises(TenantNotFoundError, match="there is no tenant nobody"):
        await catalog.tenant(TenantId("nobody"))
    with pytest.raises(TenantNotFoundError):
        await catalog.tenant_by_number(TenantNo(99))
    with pytest.raises(InvalidInputError):
        await catalog.tenant_by_number(TenantNo(1 << 70))


async def test_listings_are_paged_in_byte_order_and_bounded(catalog: Catalog):
    names = ["0", "a", "a-b", "a_b", "ab", "b", "z9"]
    for name in reversed(names):
        await add(catalog, name)

    pages: list[list[str]] = []
    after = None
    while page := await catalog.tenants(after=after, limit=3):
        pages.append([tenant.tenant_id for tenant in page])
        after = page[-1].tenant_id

    assert pages == [["0", "a", "a-b"], ["a_b", "ab", "b"], ["z9"]]
    for limit in (0, -1, 1_001):
        with pytest.raises(InvalidInputError, match="use 1 to 1000"):
            await catalog.tenants(limit=limit)


async def test_a_status_changes_only_from_the_expected_one(catalog: Catalog):
    number = (await add(catalog)).tenant_no

    await catalog.set_status(number, TenantStatus.ACTIVE, expected=TenantStatus.CREATING)

    with pytest.raises(ConflictError, match="status is active, not creating"):
        await catalog.set_status(number, TenantStatus.ACTIVE, expected=TenantStatus.CREATING)
    with pytest.raises(TenantNotFoundError):
        await catalog.set_status(TenantNo(99), TenantStatus.ACTIVE, expected=TenantStatus.CREATING)
    assert (await catalog.tenant_by_number(number)).status is TenantStatus.ACTIVE


# Placements


async def test_a_placement_is_replaced_only_at_the_expected_epoch(catalog: Catalog):
    number = (await add(catalog)).tenant_no
    await catalog.set_placement(number, placement(1), expected_epoch=None)
    with pytest.raises(PlacementChangedError):
        await catalog.set_placement(number, placement(1), expected_epoch=None)

    later = placement(5, IsolationLevel.SCHEMA)
    await catalog.set_placement(number, later, expected_epoch=Epoch(1))

    with pytest.raises(PlacementChangedError):
        await catalog.set_placement(number, placement(6), expected_epoch=Epoch(1))
    assert (await catalog.tenant_by_number(number)).placement == later


async def test_of_many_moves_at_once_one_wins(catalog: Catalog):
    number = (await add(catalog)).tenant_no
    await catalog.set_placement(number, placement(1), expected_epoch=None)

    results = await asyncio.gather(
        *(
            catalog.set_placement(number, placement(2 + i), expected_epoch=Epoch(1))
            for i in range(10)
        ),
        return_exceptions=True,
    )

    assert sorted(type(result).__name__ for result in results) == [
        "NoneType",
        *["PlacementChangedError"] * 9,
    ]


async def test_an_epoch_never_falls_whoever_writes(bare_install: Install, catalog: Catalog):
    number = (await add(catalog)).tenant_no
    await catalog.set_placement(number, placement(5), expected_epoch=None)
    for epoch in (4, 5):
        with pytest.raises(InvalidInputError, match="only rises"):
            await catalog.set_placement(number, placement(epoch), expected_epoch=Epoch(5))
    async with bare_install.connected("tenancy_control") as control:
        for query in (
            "update catalog.placement set epoch = 4",
            "update catalog.placement set schema = 'other'",
        ):
            with pytest.raises(asyncpg.CheckViolationError, match="only rises"):
                await control.execute(query)


async def test_a_placement_needs_a_known_tenant_and_a_known_server(catalog: Catalog):
    with pytest.raises(TenantNotFoundError):
        await catalog.set_placement(TenantNo(99), placement(1), expected_epoch=None)
    with pytest.raises(InvalidInputError, match="the catalog refuses the change"):
        await catalog.set_placement(TenantNo(99), placement(0), expected_epoch=None)
    number = (await add(catalog)).tenant_no
    elsewhere = dataclasses.replace(placement(1), server=ServerName("moon"))
    with pytest.raises(ServerNotFoundError, match="'moon' is not in the catalog"):
        await catalog.set_placement(number, elsewhere, expected_epoch=None)


async def test_a_tenant_and_its_first_placement_come_together(catalog: Catalog):
    context = TenantContext(tenant_id="acme")
    made = await catalog.add_tenant(context, placement(1))
    again = await catalog.add_tenant(context, replace(placement(1), role=RoleName("t_other")))

    assert made.placement == placement(1)
    assert again == made
    elsewhere = replace(placement(1), server=ServerName("nowhere"))
    with pytest.raises(ServerNotFoundError):
        await catalog.add_tenant(TenantContext(tenant_id="other"), elsewhere)
    with pytest.raises(TenantNotFoundError):
        await catalog.tenant(TenantId("other"))


async def test_tenants_are_counted_by_strategy(catalog: Catalog):
    for name, level in (("a", "row"), ("b", "row"), ("c", "schema")):
        tenant = await add(catalog, name)
        await catalog.set_placement(
            tenant.tenant_no, placement(1, IsolationLevel(level)), expected_epoch=None
        )
    hybrid = replace(placement(1, IsolationLevel.ROW), sensitive_schema=SchemaName("t_own"))
    await catalog.set_placement((await add(catalog, "d")).tenant_no, hybrid, expected_epoch=None)
    await add(catalog, "without-a-placement")

    assert await catalog.count_by_strategy() == {
        StrategyName.ROW_LEVEL: 2,
        StrategyName.SCHEMA_LEVEL: 1,
        StrategyName.HYBRID: 1,
    }
    assert (await catalog.tenant(TenantId("d"))).placement == hybrid
    assert await catalog.hybrid_counts() == {hybrid.server: 1}


async def test_a_tenant_is_removed_only_when_deleting_and_its_number_never_comes_back(
    catalog: Catalog,
):
    number = (await add(catalog)).tenant_no
    await catalog.set_placement(number, placement(1), expected_epoch=None)
    own = NamespaceRecord(
        server=MAIN,
        database=DatabaseName("tenancy"),
        schema=SchemaName("t_x"),
        kind=NamespaceKind.OWN,
        tenant_no=number,
    )
    await catalog.record_namespace(own)
    with pytest.raises(ConflictError, match="status is creating, not deleting"):
        await catalog.remove_tenant(number)
    await catalog.set_status(number, TenantStatus.DELETING, expected=TenantStatus.CREATING)
    with pytest.raises(ConflictError, match="still has a namespace"):
        await catalog.remove_tenant(number)
    await catalog.remove_namespace(own.server, own.database, own.schema)

    await catalog.remove_tenant(number)
    await catalog.remove_tenant(number)

    assert (await add(catalog)).tenant_no > number


# Namespaces, migrations, named operations, servers


async def test_namespaces_are_recorded_replaced_and_paged(catalog: Catalog):
    records = [
        NamespaceRecord(
            server=MAIN,
            database=DatabaseName(database),
            schema=SchemaName(schema),
            kind=kind,
            version=version,
            state=state,
            error=error,
        )
        for database, schema, kind, version, state, error in (
            ("tenancy", "app", NamespaceKind.SHARED, 3, NamespaceState.CURRENT, None),
            ("tenancy", "t_a", NamespaceKind.OWN, 2, NamespaceState.CURRENT, None),
            ("tenancy_template", "app", NamespaceKind.TEMPLATE, 3, NamespaceState.FAILED, "no"),
        )
    ]
    for record in records:
        await catalog.record_namespace(dataclasses.replace(record, version=0))
        await catalog.record_namespace(record)

    listed = await catalog.namespaces()
    assert [dataclasses.replace(item, changed_at=None) for item in listed] == records
    assert await catalog.namespaces(after=listed[0], limit=1) == [listed[1]]
    assert await catalog.namespaces(kind=NamespaceKind.OWN) == [listed[1]]
    assert await catalog.namespaces(behind=3) == listed[1:]
    assert await catalog.namespace(MAIN, DatabaseName("tenancy"), SchemaName("t_a")) == listed[1]
    assert await catalog.namespace(MAIN, DatabaseName("tenancy"), SchemaName("no")) is None


async def test_a_migration_is_registered_once_under_its_number(catalog: Catalog):
    first = MigrationRecord(number=1, name="a", sql="create table t ()", checksum=b"1")
    assert await catalog.newest_migration() == 0

    assert await catalog.add_migration(first) is True
    assert await catalog.add_migration(first) is False
    assert await catalog.add_migration(dataclasses.replace(first, number=2)) is True

    with pytest.raises(MigrationConflictError, match="migration 1 exists already"):
        await catalog.add_migration(dataclasses.replace(first, checksum=b"2"))
    assert [item.number for item in await catalog.migrations()] == [1, 2]
    (second,) = await catalog.migrations(after=1)
    assert (second.number, second.sql, second.checksum) == (2, first.sql, first.checksum)
    assert await catalog.newest_migration() == 2


async def test_named_operations_are_kept_replaced_and_removed(catalog: Catalog):
    assert await catalog.add_named_operation(NamedOperation(name="list", sql="select 1"))
    assert not await catalog.add_named_operation(NamedOperation(name="list", sql="select 3"))
    await catalog.set_named_operation(NamedOperation(name="list", sql="select 2"))

    assert (await catalog.named_operation("list")).sql == "select 2"
    assert await catalog.named_operations() == [NamedOperation(name="list", sql="select 2")]
    await catalog.remove_named_operation("list")
    for use in (catalog.named_operation, catalog.remove_named_operation):
        with pytest.raises(OperationNotFoundError):
            await use("list")
    with pytest.raises(InvalidInputError):
        await catalog.set_named_operation(NamedOperation(name="No good", sql="select 1"))


async def test_servers_are_known_with_their_regions(catalog: Catalog):
    await catalog.add_server(ServerName("far"), Region("moon"))
    await catalog.add_server(ServerName("far"), Region("mars"))

    assert await catalog.servers() == {"main": None, "far": "mars"}


# Failures


async def test_a_write_whose_answer_is_lost_has_an_unknown_outcome(
    bare_install: Install, catalog: Catalog
):
    number = (await add(catalog)).tenant_no
    async with bare_install.connected() as admin, bare_install.connected() as watcher:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("update catalog.tenant set updated_at = now()")
        write = asyncio.create_task(
            catalog.set_status(number, TenantStatus.ACTIVE, expected=TenantStatus.CREATING)
        )
        await _cut_whoever_waits(watcher, "tenancy_control")
        with pytest.raises(OutcomeUnknownError):
            await write
        await transaction.rollback()
    assert (await catalog.tenant_by_number(number)).status is TenantStatus.CREATING


async def test_a_read_whose_answer_is_lost_did_nothing(bare_install: Install, catalog: Catalog):
    async with bare_install.connected() as admin, bare_install.connected() as watcher:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("lock table catalog.tenant")
        read = asyncio.create_task(catalog.tenants())
        await _cut_whoever_waits(watcher, "tenancy_control")
        with pytest.raises(ServerUnavailableError):
            await read
        await transaction.rollback()
    assert await catalog.tenants() == []


async def _cut_whoever_waits(watcher: asyncpg.Connection, role: str) -> None:
    query = (
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where usename = $1 and wait_event_type = 'Lock'"
    )
    while not await watcher.fetch(query, role):
        await asyncio.sleep(0)


async def test_more_callers_than_may_wait_are_turned_away_at_once(bare_install: Install):
    catalog = await open_catalog(bare_install, catalog_connections_max=1, waiting_operations_max=2)
    try:
        async with bare_install.connected() as admin:
            transaction = admin.transaction()
            await transaction.start()
            await admin.execute("lock table catalog.tenant")
            holder = asyncio.create_task(catalog.tenants())
            await _waiting(admin)
            others = [asyncio.create_task(catalog.tenants()) for _ in range(5)]
            refused, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            assert len(refused) == 3
            assert all(isinstance(task.exception(), OverloadedError) for task in refused)
            await transaction.rollback()
        assert await holder == []
        assert [await task for task in others if task not in refused] == [[], []]
    finally:
        await catalog.close()


async def test_a_caller_waits_for_a_connection_no_longer_than_the_limit(bare_install: Install):
    catalog = await open_catalog(bare_install, catalog_connections_max=1, connection_wait_ms=20)
    try:
        async with bare_install.connected() as admin:
            transaction = admin.transaction()
            await transaction.start()
            await admin.execute("lock table catalog.tenant")
            holder = asyncio.create_task(catalog.tenants())
            await _waiting(admin)
            with pytest.raises(OverloadedError, match="connections to the catalog are at work"):
                await catalog.tenants()
            await transaction.rollback()
        assert await holder == []
        assert await catalog.tenants() == []
    finally:
        await catalog.close()


async def _waiting(admin: asyncpg.Connection) -> None:
    query = "select exists (select from pg_locks where not granted and relation is not null)"
    while not await admin.fetchval(query):
        await asyncio.sleep(0)


async def test_a_cancelled_caller_leaves_the_connection_usable(bare_install: Install):
    catalog = await open_catalog(bare_install, catalog_connections_max=1)
    try:
        async with bare_install.connected() as admin:
            transaction = admin.transaction()
            await transaction.start()
            await admin.execute("lock table catalog.tenant")
            read = asyncio.create_task(catalog.tenants())
            await _waiting(admin)
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await transaction.rollback()
        assert await catalog.tenants() == []
    finally:
        await catalog.close()


async def test_a_server_that_is_not_there_is_told(bare_install: Install):
    nowhere = ServerConfig(dsn="postgresql://u:p@127.0.0.1:1/postgres")
    with pytest.raises(ServerUnavailableError):
        await Catalog.open(
            settings=bare_install.settings, master_key=bare_install.master_key, server=nowhere
        )


async def test_a_wrong_master_key_is_told(bare_install: Install):
    with pytest.raises(SetupError, match="refused tenancy_control"):
        await Catalog.open(
            settings=bare_install.settings,
            master_key=MasterKey(bytes(32)),
            server=bare_install.server_config,
        )
