"""The keys that sign bindings: which there are, and how they rotate.

Every database has its own key under each number, derived from the master key, the server's name,
the database's name and the number; so a database that was copied accepts nothing until its keys
were installed. Numbers are the same everywhere and are kept in the catalog.

A rotation is `introduce` (every database accepts the new number too), then `start_signing` (the
runtime signs with it), and, once every process has heard of it, `retire` (no database accepts the
old one any more). Each step may be repeated and may be interrupted between any two databases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import asyncpg

from tenancy.data_isolation.core.crypto import (
    BindingKey,
    MasterKey,
    binding_key,
    hmac_pads,
    sign_binding,
)
from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import KeyNumber
from tenancy.data_isolation.engine.layout import OWNER_ROLE, shared_database
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("binding.sql")
_ROLES_SQL = SqlFile("roles.sql")
#: Derived keys kept per process; deriving one costs a few microseconds.
_DERIVED_KEYS_MAX = 4_096


class BindingKeys:
    """Signs bindings. No I/O but in `refresh`; safe to use from any task.

    `refresh` reads the number to sign with from the catalog; call it at the start and whenever a
    database answers `TN002`.
    """

    def __init__(self, master_key: MasterKey) -> None:
        self._derive = lru_cache(maxsize=_DERIVED_KEYS_MAX)(
            lambda server, database, key_id: binding_key(master_key, server, database, key_id)
        )
        self._signing_id = 1

    @property
    def signing_id(self) -> int:
        """The number of the key that `sign` uses."""
        return self._signing_id

    async def refresh(self, catalog: Catalog) -> bool:
        """Read the number to sign with; whether it is another one than before."""
        before = self._signing_id
        self._signing_id = _signing_id(await catalog.key_numbers())
        return self._signing_id != before

    def key(self, server: ServerName, database: DatabaseName, key_id: int) -> BindingKey:
        """The key of one database under one number."""
        return self._derive(server, database, key_id)

    def sign(
        self,
        server: ServerName,
        database: DatabaseName,
        tenant_no: TenantNo,
        epoch: Epoch,
        backend_pid: int,
    ) -> str:
        """The text for the setting `tenancy.binding` of the backend with that pid."""
        key = self._derive(server, database, self._signing_id)
        return sign_binding(key, tenant_no, epoch, backend_pid)

    async def install(
        self,
        connection: asyncpg.Connection,
        catalog: Catalog,
        *,
        server: ServerName,
        database: DatabaseName,
    ) -> None:
        """Give a database exactly the keys that the catalog knows of, after it was cloned.

        `connection` is the admin's, to that database. The numbers are read again afterwards: a
        rotation that began meanwhile either saw this database or is seen here.
        """
        installed: list[int] = []
        while installed != (wanted := _valid_ids(await catalog.key_numbers())):
            keys = [self.key(server, database, key_id) for key_id in wanted]
            await replace_keys(connection, keys)
            installed = wanted


class KeyRotation:
    """Rotates the keys of every database of every server. One at a time, by an administrator."""

    def __init__(
        self, *, settings: Settings, keys: BindingKeys, admin: AdminConnections, catalog: Catalog
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._admin = admin
        self._catalog = catalog

    async def introduce(self) -> int:
        """Make the next number known everywhere; the number. Repeated, it finishes the last one."""
        numbers = await self._catalog.key_numbers()
        pending = [n.key_id for n in numbers if not n.signing and not n.retired]
        key_id = pending[-1] if pending else await self._catalog.introduce_key()
        await self._install_everywhere(key_id)
        return key_id

    async def start_signing(self, key_id: int) -> None:
        """Sign with that number from now on; `ConflictError` when it is not introduced."""
        await self._install_everywhere(key_id)
        if not await self._catalog.start_signing(key_id):
            raise ConflictError(f"binding key {key_id} is not introduced, or retired already")
        await self._keys.refresh(self._catalog)

    async def retire(self, key_id: int) -> None:
        """Let no database accept that number any more; `ConflictError` when none signs after it."""
        if not await self._catalog.retire_key(key_id):
            raise ConflictError(
                f"binding key {key_id} cannot be retired: no later key signs (rotate first)"
            )
        for server, database in await self._databases():
            async with self._admin.session(server, database) as connection:
                await connection.execute(_SQL.statement("retire_binding_key"), key_id)

    async def _install_everywhere(self, key_id: int) -> None:
        for server, database in await self._databases():
            async with self._admin.session(server, database) as connection:
                await add_keys(connection, [self._keys.key(server, database, key_id)])

    async def _databases(self) -> list[tuple[ServerName, DatabaseName]]:
        """Every database that holds tenants. The template holds none, and so no keys."""
        found = []
        for config in self._admin.servers:
            server = ServerName(config.name)
            async with self._admin.session(server) as connection:
                rows = await connection.fetch(
                    _ROLES_SQL.statement("databases_of_ours"),
                    [shared_database(self._settings)],
                    OWNER_ROLE,
                )
            found += [(server, DatabaseName(row["datname"])) for row in rows]
        return found


async def add_keys(connection: asyncpg.Connection, keys: Sequence[BindingKey]) -> None:
    """Let the database of the admin's `connection` accept these keys too."""
    for key in keys:
        await connection.execute(_SQL.statement("add_binding_key"), key.key_id, *hmac_pads(key))


async def replace_keys(connection: asyncpg.Connection, keys: Sequence[BindingKey]) -> None:
    """Let the database of the admin's `connection` accept these keys and no others."""
    pads = [hmac_pads(key) for key in keys]
    await connection.execute(
        _SQL.statement("adopt_binding_keys"),
        [key.key_id for key in keys],
        [inner for inner, _ in pads],
        [outer for _, outer in pads],
    )


def _signing_id(numbers: Sequence[KeyNumber]) -> int:
    return max(number.key_id for number in numbers if number.signing and not number.retired)


def _valid_ids(numbers: Sequence[KeyNumber]) -> list[int]:
    return [number.key_id for number in numbers if not number.retired]
