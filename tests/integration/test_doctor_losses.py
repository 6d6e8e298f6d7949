"""Tables that are gone: told as what they are, and made anew by what the doctor tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from support.doctoring import as_told, broken, mend_all, whole_look
from support.engines import ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import StatementError, StatementForbiddenError
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
MORE = """
alter table users add column nick text collate "C" default 'none';
create unique index users_nick on users (nick, id) where nick <> 'none';
alter table plans add column rank serial;
create function capped() returns trigger language plpgsql as
    $$ begin new.name := upper(new.name); return new; end $$;
create trigger cap before insert on plans for each row execute function capped();
alter table plans add check (name <> '');
create view planned as select users.id, plans.name from users join plans on plans.id = users.plan;
"""


def placed(tenant: Tenant) -> Placement:
    assert tenant.placement is not None
    return tenant.placement


async def run(install: Install, database: str, *statements: str) -> None:
    connection = await asyncpg.connect(install.server.dsn(database))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def value(install: Install, database: str, query: str) -> Any:
    connection = await asyncpg.connect(install.server.dsn(database))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_databases_made_before_a_migration_are_held_against_the_schema_after_it(
    install: Install,
):
    async with opened(install) as engine:
        dawn = placed(await make_tenant(engine, "dawn", DATABASE))
        report = await engine.apply_migration("0002_more", MORE)
        assert report.failures == ()
    newest = "select max(number) from {}.tenancy_schema_version"
    assert await value(install, dawn.database, newest.format("tenancy_reference")) == 1
    assert await value(install, dawn.database, newest.format("app")) == 2
    look = await whole_look(install)
    assert look.not_compared == 0
    assert await broken(install) == []

    # Things of both migrations.
    await run(
        install,
        dawn.database,
        "drop trigger cap on app.plans",
        "alter table app.plans drop constraint plans_name_check",
        "drop view app.planned",
        "drop index app.users_nick",
        "alter table app.users drop constraint users_plan_fkey",
        "create trigger spy after insert on app.users for each row execute function app.capped()",
    )
    found = [
        item for item in (await whole_look(install)).findings if item.database == dawn.database
    ]
    assert {item.subject for item in found} == {
        "trigger cap of app.plans",
        "constraint plans_name_check of app.plans",
        "view app.planned",
        "index users_nick of app.users",
        "constraint users_plan_fkey of app.users",
        "trigger spy of app.users",
    }
    assert await mend_all(install, found) == []
    assert await _inside(install, dawn.database) == []
    async with opened(install, tables=False) as engine:
        await ask(engine, "dawn", "insert into plans (id, name) values (1, 'gold')")
        await ask(engine, "dawn", "update users set plan = 1 where id = 1")
        assert (await ask(engine, "dawn", "select * from planned")).rows == [[1, "GOLD"]]
        await _lose_a_column_and_a_sequence(engine, install, dawn.database)


async def _lose_a_column_and_a_sequence(engine: Engine, install: Install, database: str) -> None:
    await run(
        install,
        database,
        "alter table app.users drop column nick",
        "drop sequence app.plans_rank_seq cascade",
    )
    found = await _inside(install, database)
    by_hand = {item.subject for item in found if item.by_hand}
    assert by_hand == {"column nick of app.users", "sequence app.plans_rank_seq"}
    for finding in found:
        if finding.by_hand:
            assert "first look for a backup" in finding.advice
            await as_told(install, finding)
    await mend_all(install, await _inside(install, database))
    assert await _inside(install, database) == []
    assert (await ask(engine, "dawn", "select distinct nick from users")).rows == [["none"]]
    again = "insert into plans (id, name) values (2, 'x') returning rank"
    assert (await ask(engine, "dawn", again)).rows == [[1]]


async def _inside(install: Install, database: str) -> list[Finding]:
    findings = (await whole_look(install)).findings
    return [finding for finding in findings if finding.database == database]


async def _lose(engine: Engine, install: Install, level: IsolationLevel) -> tuple[str, str]:
    """A tenant that has lost a table that others refer to; its database and schema."""
    place = placed(await make_tenant(engine, f"of-{level}", level))
    name = f"of-{level}"
    await ask(engine, name, "insert into plans (id, name) values (1, 'gold')")
    await ask(engine, name, "update users set plan = 1 where id = 1")
    await run(install, place.database, f'drop table "{place.schema}".plans cascade')
    return place.database, place.schema


async def test_a_lost_table_is_made_anew_by_what_is_told(install: Install, subtests: Any):
    async with opened(install) as engine:
        dawn = placed(await make_tenant(engine, "dawn", DATABASE))
        await engine.apply_migration("0002_more", MORE)
        # One that was cloned before the migration, so that its own reference is older.
        await run(install, dawn.database, "drop table app.plans cascade")
        places = {level: await _lose(engine, install, level) for level in (ROW, SCHEMA, DATABASE)}
    tenants = {f"of-{level}": place for level, place in places.items()}
    tenants["dawn"] = (dawn.database, dawn.schema)
    lost = {
        (item.database, item.subject): item
        for item in await broken(install)
        if item.subject.startswith("table ")
    }
    assert lost.keys() == {(db, f"table {schema}.plans") for db, schema in tenants.values()}
    for finding in lost.values():
        assert "is missing, and the rows in it" in finding.problem
        assert "first look for a backup" in finding.advice
        assert finding.by_hand
        await as_told(install, finding)
    # A row refers to what is lost: the key cannot come back before that is put right.
    matters = await _mended(install)
    assert len([matter for matter in matters if "violates foreign key" in matter]) == 3
    async with opened(install, tables=False) as engine:
        for name in tenants:
            await ask(engine, name, "update users set plan = null")
        assert await _mended(install) == []
        for name, (database, schema) in tenants.items():
            with subtests.test(name):
                again = "insert into plans (id, name) values ($1, $2) returning rank"
                assert (await ask(engine, name, again, 2, "new")).rows == [[1]]
                assert (await ask(engine, name, again, 3, "more")).rows == [[2]]
                with pytest.raises(StatementError):
                    await ask(engine, name, "update users set plan = 99 where id = 2")
                await ask(engine, name, "update users set plan = 2")
                assert (await ask(engine, name, "select max(name) from planned")).rows == [["NEW"]]
                comment = f"select obj_description('{schema}.plans'::regclass)"
                assert await value(install, database, comment) is None
    assert await broken(install) == []
    async with opened(install, tables=False) as engine:
        report = await engine.apply_migration("0003_after", "alter table plans add column x text")
        assert report.failures == ()


async def _mended(install: Install) -> list[str]:
    """As `--mend` does it, in rounds; what was the matter in the last one."""
    matters: list[str] = []
    for _ in range(3):
        findings = await broken(install)
        matters = await mend_all(install, findings)
        if not findings:
            break
    return matters


@asynccontextmanager
async def _trap(install: Install, database: str) -> AsyncIterator[None]:
    """A function of users that could be taken for PostgreSQL's, and makes a superuser then."""
    for space in ("app", "tenancy_reference"):
        for arguments in ("text, name, text", "text, name", "text, name, name, text"):
            await run(
                install,
                database,
                f"create function {space}.format({arguments}) returns text language plpgsql as "
                "$$ begin create role trapped superuser; return 'x'; end $$",
            )
    made = "select count(*) from pg_roles where rolname = 'trapped'"
    yield
    assert await value(install, database, made) == 0
    # Whoever has it in the search_path calls it: the trap works.
    await run(
        install,
        database,
        "set search_path = app; select format('%I', relname) from pg_class limit 1",
    )
    assert await value(install, database, made) == 1
    await run(install, database, "drop role trapped")
    for space in ("app", "tenancy_reference"):
        for arguments in ("text, name, text", "text, name", "text, name, name, text"):
            await run(install, database, f"drop function {space}.format({arguments})")


async def test_a_hybrid_tenants_lost_table_is_told_as_the_tenants_loss(install: Install):
    async with opened(install) as engine:
        await engine.apply_migration("0002_more", MORE)
        place = placed(await make_tenant(engine, "hazel", hybrid=True))
        assert place.sensitive_schema is not None
        await ask(engine, "hazel", "insert into plans (id, name) values (1, 'gold')")
        await ask(engine, "hazel", "update users set plan = 1 where id = 1")
        own = place.sensitive_schema
        await run(install, place.database, f'drop table "{own}".plans cascade')
        with pytest.raises(StatementForbiddenError):
            await ask(engine, "hazel", "select * from plans")

        async with _trap(install, place.database):
            found = {item.subject: item for item in await broken(install) if "plans" in str(item)}
        lost = found["tenant hazel"]
        assert f"has lost its table {own}.plans, and the rows in it" in lost.problem
        assert (lost.check, lost.by_hand) == ("placements", True)
        await as_told(install, lost)
        assert any("violates foreign key" in matter for matter in await _mended(install))
        await ask(engine, "hazel", "update users set plan = null")
        assert await _mended(install) == []

        assert await broken(install) == []
        await ask(engine, "hazel", "insert into plans (id, name) values (2, 'new')")
        await ask(engine, "hazel", "update users set plan = 2 where id = 1")
        assert (await ask(engine, "hazel", "select * from planned")).rows == [[1, "NEW"]]
        report = await engine.apply_migration("0003_after", "alter table plans add column x text")
        assert report.failures == ()

        # The whole schema.
        await run(install, place.database, f'drop schema "{own}" cascade')
        (lost,) = [item for item in await broken(install) if item.check == "placements"]
        assert f"has lost its schema {own}, and the rows in it" in lost.problem
        await as_told(install, lost)
        # What the command comes to.
        await engine.create_tenant(TenantContext(tenant_id="hazel"), level=ROW, hybrid=True)
        assert await broken(install) == []
        await ask(engine, "hazel", "insert into users (id, email) values (1, 'x')")
