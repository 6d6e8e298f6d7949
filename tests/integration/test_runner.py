"""What migrations call never works as the admin, whatever it puts in the place of the runner."""

from __future__ import annotations

import asyncpg
import pytest
from support.engines import opened
from support.install import Install

from tenancy.data_isolation.core.errors import SchemaError

_EVIL = """
create table traps (id integer primary key);
create function replace_runner() returns integer language plpgsql as $f$
begin
    execute 'create or replace function tenancy.run(statement text) returns void '
        'language plpgsql security invoker as $r$ begin '
        'execute ''reset role''; execute ''create role {role} superuser''; '
        'execute statement; end; $r$';
    return 1;
end;
$f$;
insert into traps values (replace_runner());
create table after_it (id integer primary key);
"""


async def test_a_migration_that_replaces_the_runner_gets_no_further(install: Install):
    role = f"trap_{install.database}"
    asked = "select count(*) from pg_roles where rolname = $1"
    async with opened(install, tables=False) as engine, install.connected() as admin:
        with pytest.raises(SchemaError, match="does not work as its owner"):
            await engine.apply_migration("0001_evil", _EVIL.replace("{role}", role))
        assert await admin.fetchval(asked, role) == 0

        # The control: this is what would have run.
        with pytest.raises(asyncpg.DivisionByZeroError):
            await admin.execute(
                "begin; set local role tenancy_owner;"
                + _EVIL.split("insert into")[0]
                .replace("{role}", role)
                .replace("create table traps (id integer primary key);", "")
                .replace("create function ", "create function app.")
                + "select app.replace_runner(); reset role; select tenancy.run('select 1');"
                f"select 1 / (select 1 - count(*)::integer from pg_roles where rolname = '{role}')"
            )
        await admin.execute("rollback")
        assert await admin.fetchval(asked, role) == 0
