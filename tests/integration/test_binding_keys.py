"""Rotation of the keys that sign bindings, over the shared database and one of a single tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.install import SERVER, Install

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import DatabaseName, Epoch, TenantNo, opaque_name
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys, KeyRotation
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.databases import ensure_database
from tenancy.data_isolation.engine.layout import template_database


@pytest.fixture
async def catalog(install: Install) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(
        settings=install.settings, master_key=install.master_key, server=install.server_config
    )
    yield opened
    await opened.close()


@pytest.fixture
def keys(install: Install) -> BindingKeys:
    return BindingKeys(install.master_key)


@pytest.fixture
def rotation(install: Install, catalog: Catalog, keys: BindingKeys) -> KeyRotation:
    admin = AdminConnections(settings=install.settings, servers=(install.server_config,))
    return KeyRotation(settings=install.settings, keys=keys, admin=admin, catalog=catalog)


@pytest.fixture
async def own_database(
    install: Install, catalog: Catalog, keys: BindingKeys
) -> AsyncIterator[DatabaseName]:
    """A database of a single tenant, with the keys that the catalog knows."""
    name = DatabaseName(opaque_name())
    async with install.connected() as admin:
        await ensure_database(admin, name, template=template_database(install.settings))
        async with install.connected(database=name) as connection:
            await keys.install(connection, catalog, server=SERVER, database=name)
        yield name
        await admin.execute(f'drop database "{name}" with (force)')


async def accepts(install: Install, keys: BindingKeys, database: str, key_id: int) -> bool:
    """Whether `database` accepts a binding that is signed with that key."""
    async with install.connected(database=database) as admin:
        await admin.execute("insert into tenancy.fence values (1, 1, true) on conflict do nothing")
        pid = admin.get_server_pid()
        text = install.binding(1, 1, pid, database=database, key_id=key_id)
        await admin.execute("select set_config('tenancy.binding', $1, false)", text)
        try:
            return bool(await admin.fetchval("select tenancy.tenant()") == 1)
        except asyncpg.PostgresError as error:
            if error.sqlstate != "TN002":
                raise
            return False


async def test_keys_rotate_without_a_moment_at_which_none_is_good(
    install: Install,
    catalog: Catalog,
    keys: BindingKeys,
    rotation: KeyRotation,
    own_database: DatabaseName,
):
    both = (install.database, own_database)
    new = await rotation.introduce()
    assert new == 2
    assert keys.signing_id == 1
    for database in both:
        assert await accepts(install, keys, database, 1)
        assert await accepts(install, keys, database, 2)

    elsewhere = BindingKeys(install.master_key)
    await rotation.start_signing(new)
    assert keys.signing_id == 2
    assert await elsewhere.refresh(catalog) is True
    assert await elsewhere.refresh(catalog) is False
    assert elsewhere.signing_id == 2

    await rotation.retire(1)
    for database in both:
        assert not await accepts(install, keys, database, 1)
        assert await accepts(install, keys, database, 2)


async def test_each_step_can_be_repeated(keys: BindingKeys, rotation: KeyRotation):
    assert [await rotation.introduce() for _ in range(2)] == [2, 2]
    for _ in range(2):
        await rotation.start_signing(2)
    for _ in range(2):
        await rotation.retire(1)
    assert await rotation.introduce() == 3


async def test_a_retired_key_does_not_come_back(
    install: Install, keys: BindingKeys, rotation: KeyRotation
):
    await rotation.start_signing(await rotation.introduce())
    await rotation.retire(1)

    with pytest.raises(ConflictError):
        await rotation.start_signing(1)

    assert not await accepts(install, keys, install.database, 1)
    async with install.connected() as admin:
        pads = await admin.fetchrow("select * from tenancy.binding_key where key_id = 1")
    assert pads["inner_pad"] is None
    assert pads["outer_pad"] is None


async def test_the_key_that_signs_cannot_be_retired(rotation: KeyRotation):
    with pytest.raises(ConflictError, match="no later key signs"):
        await rotation.retire(1)
    await rotation.introduce()
    with pytest.raises(ConflictError, match="no later key signs"):
        await rotation.retire(1)
    with pytest.raises(ConflictError):
        await rotation.start_signing(7)


async def test_a_database_that_is_made_during_a_rotation_gets_the_new_key(
    install: Install, catalog: Catalog, keys: BindingKeys, rotation: KeyRotation
):
    await rotation.start_signing(await rotation.introduce())
    await rotation.retire(1)
    name = DatabaseName(opaque_name())
    async with install.connected() as admin:
        await ensure_database(admin, name, template=template_database(install.settings))
        try:
            async with install.connected(database=name) as connection:
                await keys.install(connection, catalog, server=SERVER, database=name)
            assert await accepts(install, keys, name, 2)
            assert not await accepts(install, keys, name, 1)
        finally:
            await admin.execute(f'drop database "{name}" with (force)')


async def test_the_runtimes_signature_is_the_one_that_the_database_checks(
    install: Install, keys: BindingKeys
):
    async with install.connected("tenancy_rows") as rows, install.connected() as admin:
        await admin.execute("insert into tenancy.fence values (7, 3, true)")
        text = keys.sign(SERVER, install.database, TenantNo(7), Epoch(3), rows.get_server_pid())
        await rows.execute("select set_config('tenancy.binding', $1, false)", text)

        assert await rows.fetchval("select tenancy.tenant()") == 7


def test_a_key_shows_no_secret(keys: BindingKeys, install: Install):
    key = keys.key(SERVER, install.database, 1)

    assert key.secret.hex() not in repr(key)
    assert str(key.secret) not in repr(key)
