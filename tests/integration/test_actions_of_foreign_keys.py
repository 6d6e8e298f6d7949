"""Actions of foreign keys run with row security off for BEFORE triggers, so those are refused."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import IsolationLevel, Operation, TenantContext
from tenancy.data_isolation.core.errors import SchemaRefusedError
from tenancy.data_isolation.engine.engine import Engine

_TABLES = """
create table parent (id integer primary key);
create table stats (id integer primary key, n integer not null);
create table child (id integer primary key, parent_id integer references parent (id){action});
create function count_down() returns trigger language plpgsql as $$
begin
    update stats set n = n - 1;
    return old;
end $$;
create trigger counts {when} delete on child for each row execute function count_down();
"""


@pytest.mark.parametrize("action", [" on delete cascade", " on delete set null"])
async def test_a_before_trigger_under_an_action_is_refused(install, action):
    async with await Engine.open(install.config) as engine:
        with pytest.raises(SchemaRefusedError, match="without row security"):
            await engine.apply_migration("0001_t", _TABLES.format(action=action, when="before"))

        assert await engine.tables() == []


@pytest.mark.parametrize(("action", "when"), [("", "before"), (" on delete cascade", "after")])
async def test_what_is_allowed_changes_the_rows_of_one_tenant(install, action, when):
    async with await Engine.open(install.config) as engine:
        await engine.apply_migration("0001_t", _TABLES.format(action=action, when=when))
        for name in ("a", "b"):
            await engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
            for query in (
                "insert into parent (id) values (1)",
                "insert into stats (id, n) values (1, 10)",
                "insert into child (id, parent_id) values (1, 1)",
            ):
                await engine.execute(name, Operation(query=query))

        deleted = "delete from parent" if action else "delete from child"
        await engine.execute("a", Operation(query=deleted))

        left = {
            name: (await engine.execute(name, Operation(query="select n from stats"))).rows
            for name in ("a", "b")
        }
        assert left == {"a": [[9]], "b": [[10]]}


async def test_checks_that_call_functions_are_refused_under_an_action(install):
    sql = """
        create function fine(v integer) returns boolean language sql immutable as 'select v > 0';
        create domain positive as integer check (fine(value));
        create domain more_positive as positive;
        create table parent (id integer primary key);
        create table child (
            id integer primary key, v more_positive,
            parent_id integer references parent (id) on update cascade
        );
    """
    async with await Engine.open(install.config) as engine:
        with pytest.raises(SchemaRefusedError, match="without row security"):
            await engine.apply_migration("0001_t", sql)
