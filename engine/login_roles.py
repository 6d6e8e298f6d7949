"""Making the roles of a server.

Rules this module keeps:

* A password never leaves the process: the server gets a SCRAM verifier (RFC 5803), derived from the
  master key, so that making a role twice changes nothing.
* A role that exists keeps its attributes: what is wrong with them is for the audit to refuse, not
  for this module to cover up.
* A comment on the owner role tells by which master key and server name the passwords were derived;
  with another one nothing is changed (`SetupError`), since that would lock out the runtime that
  made them.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, role_password, role_salt, scram_verifier
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import RoleName, ServerName
from tenancy.data_isolation.engine.layout import (
    CONTROL_ROLE,
    HYBRID_ROLE,
    KEEPER_ROLE,
    OWNER_ROLE,
    ROWS_ROLE,
)
from tenancy.data_isolation.engine.login_limits import UNLIMITED
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("roles.sql")


async def ensure_fixed_roles(
    connection: asyncpg.Connection, *, master_key: MasterKey, server: ServerName, control: bool
) -> None:
    """The owner, the keeper, the hybrid group, and the logins of level ROW and, with `control`, of
    the catalog.

    The caller holds the roles lock. Raises `SetupError` when the roles belong to an installation
    with another master key.
    """
    await _ensure_owner(connection, master_key, server)
    for role in (KEEPER_ROLE, HYBRID_ROLE):
        await _ensure_group(connection, role)
    logins = (ROWS_ROLE, CONTROL_ROLE) if control else (ROWS_ROLE,)
    for role in logins:
        await ensure_login_role(connection, master_key=master_key, server=server, role=role)


async def ensure_login_role(
    connection: asyncpg.Connection,
    *,
    master_key: MasterKey,
    server: ServerName,
    role: RoleName,
    connection_limit: int = UNLIMITED,
    inherits: bool = False,
) -> None:
    """A LOGIN role with the derived password and no rights at all. Idempotent.

    `inherits`: it shall have the rights of what it is made a member of. A role that exists gets its
    password again, since a tenant can change that of its own login.
    """
    verifier = scram_verifier(
        role_password(master_key, server, role), role_salt(master_key, server, role)
    )
    if not await connection.fetchval(_SQL.statement("role_exists"), role):
        text = await connection.fetchval(
            _SQL.statement("create_login_text"),
            role,
            verifier,
            connection_limit,
            "inherit" if inherits else "noinherit",
        )
        try:
            await connection.execute(text)
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            pass  # Somebody else made it meanwhile: go on as if it had been there.
        else:
            return
    if await _has_password(connection, role, verifier):
        return
    await connection.execute(
        await connection.fetchval(_SQL.statement("set_password_text"), role, verifier)
    )


async def ensure_member(connection: asyncpg.Connection, role: RoleName, group: RoleName) -> None:
    """Let a login have the rights of a role that nobody logs in as. Idempotent."""
    name = "join_group" if connection.get_server_version().major >= 16 else "join_group_15"
    await connection.execute(_SQL.statement(name, group=group, role=role))


async def may_act_as(connection: asyncpg.Connection, role: RoleName, version_num: int) -> bool:
    """Whether the admin has the role's rights and may `SET ROLE` to it."""
    # Before PostgreSQL 16 membership alone allows SET ROLE, and there is no privilege of that name.
    privilege = "SET" if version_num >= 160_000 else "MEMBER"
    return bool(await connection.fetchval(_SQL.statement("may_act_as"), role, privilege))


def key_fingerprint(master_key: MasterKey, server: ServerName) -> str:
    """What tells two master keys, or two names of one server, apart. Says nothing of the key."""
    derived = role_password(master_key, server, RoleName("fingerprint"))
    return hashlib.sha256(derived.encode()).hexdigest()[:16]


async def _ensure_group(connection: asyncpg.Connection, role: RoleName) -> None:
    """A role without rights that nobody can log in as."""
    if await connection.fetchval(_SQL.statement("role_exists"), role):
        return
    text = await connection.fetchval(_SQL.statement("create_owner_text"), role)
    # Somebody may have made it meanwhile.
    with suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        await connection.execute(text)


async def _ensure_owner(
    connection: asyncpg.Connection, master_key: MasterKey, server: ServerName
) -> None:
    comment = f"tenancy.data_isolation {key_fingerprint(master_key, server)}"
    if not await connection.fetchval(_SQL.statement("role_exists"), OWNER_ROLE):
        try:
            async with connection.transaction():
                for name, *values in (("create_owner_text",), ("comment_role_text", comment)):
                    text = await connection.fetchval(_SQL.statement(name), OWNER_ROLE, *values)
                    await connection.execute(text)
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            pass  # Somebody made it meanwhile, in another maintenance database: look at theirs.
    found = await connection.fetchval(_SQL.statement("role_comment"), OWNER_ROLE)
    if found == comment:
        return
    raise SetupError(
        f"the roles on server {server!r} were made with another TENANCY_MASTER_KEY or under "
        "another server name; start with the key and the name they were made with. If you are "
        "sure that no other installation uses them, run: "
        f"comment on role {OWNER_ROLE} is '{comment}'"
    )


async def _has_password(connection: asyncpg.Connection, role: RoleName, verifier: str) -> bool:
    """Whether the role has that password already; False when that cannot be seen."""
    try:
        stored = await connection.fetchval(_SQL.statement("stored_password"), role)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return bool(stored == verifier)
