"""The one function in the keeper's schema that belongs to the role of migrations.

What migrations call can therefore alter it, and gets nowhere: a call looks at it first, and so does
the end of each transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.earlier_release import own_objects
from support.engines import opened
from support.install import Install

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.engine import namespace_schema
from tenancy.data_isolation.engine.engine import Engine

_EVIL = """
create table traps (id integer primary key);
create function spring() returns integer language plpgsql as $f$
begin
    execute $attack${attack}$attack$;
    return 1;
end;
$f$;
insert into traps values (spring());
"""
_AS_CALLER = "alter function tenancy.run(text) security invoker"
_ALTERED = [
    _AS_CALLER,
    "alter function tenancy.run(text) set search_path = app",
    "grant execute on function tenancy.run(text) to public",
    "grant execute on function tenancy.run(text) to tenancy_rows",
    "drop function tenancy.run(text)",
]


#: After these nothing of the migration works any more, whoever looks.
_ENDING = {
    "alter function tenancy.run(text) security invoker",
    "drop function tenancy.run(text)",
}


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, tables=False) as opened_engine:
        yield opened_engine


@pytest.mark.parametrize("attack", _ALTERED)
async def test_a_migration_that_alters_the_runner_last_is_undone(
    engine: Engine, install: Install, monkeypatch: pytest.MonkeyPatch, attack: str
):
    async with install.connected() as admin:
        before = await own_objects(admin)

        # One that cannot be called any more is found when the runtime's own tables are asked.
        with pytest.raises(SchemaError, match=r"not as the runtime made it|tenancy\.run"):
            await engine.apply_migration("0001_evil", _EVIL.replace("{attack}", attack))

        assert await own_objects(admin) == before
        assert await admin.fetchval("select count(*) from catalog.migration") == 0
        if attack in _ENDING:
            return

        # The control: this is what would have stayed.
        async def unseen(_: asyncpg.Connection) -> None:
            pass

        monkeypatch.setattr(namespace_schema, "check_runner", unseen)
        await engine.apply_migration("0001_evil", _EVIL.replace("{attack}", attack))
        assert await own_objects(admin) != before


async def test_the_runner_that_works_as_its_caller_is_not_called_again(
    engine: Engine, install: Install
):
    role = f"trap_{install.database}"
    again = f"""
    create table more (id integer primary key);
    create function rise() returns integer language plpgsql as $f$
    begin
        execute 'reset role';
        execute 'create role {role} superuser';
        return 1;
    end;
    $f$;
    insert into more values (rise());
    """
    asked = "select count(*) from pg_roles where rolname = $1"
    async with install.connected() as admin:
        before = await own_objects(admin)
        with pytest.raises(SchemaError, match="does not work as its owner"):
            await engine.apply_migration("0001_evil", _EVIL.replace("{attack}", _AS_CALLER) + again)
        assert await own_objects(admin) == before
        assert await admin.fetchval(asked, role) == 0

        # The control: this is what would have run.
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(_AS_CALLER)
        await admin.execute("set local role tenancy_owner; set local search_path = app")
        await admin.execute(again.split("insert into")[0])
        await admin.execute("select tenancy.run('insert into more values (rise())')")
        assert await admin.fetchval(asked, role) == 1
        await transaction.rollback()
        assert await admin.fetchval(asked, role) == 0


async def test_nobody_else_can_replace_or_rename_the_runner(install: Install):
    async with install.connected() as admin:
        for sql in (
            "create or replace function tenancy.run(statement text) returns void "
            "language plpgsql as 'begin end'",
            "alter function tenancy.run(text) rename to walk",
            "alter function tenancy.run(text) owner to tenancy_keeper",
        ):
            transaction = admin.transaction()
            await transaction.start()
            await admin.execute("set local role tenancy_owner")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await admin.execute(sql)
            await transaction.rollback()
