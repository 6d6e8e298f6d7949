"""Erasing a tenant from shared tables: nothing stays, and the users' triggers have no say in it."""

from __future__ import annotations

import asyncpg
import pytest

from tenancy.data_isolation.core import IsolationLevel, Operation, TenantContext
from tenancy.data_isolation.core.errors import TenantNotFoundError
from tenancy.data_isolation.engine.engine import Engine

_TRIGGER = """
create table thing (id integer primary key, parent integer references thing (id));
create table log (id integer primary key, what text not null);
create function act() returns trigger language plpgsql as $$
begin
    {body}
end $$;
create trigger act {when} delete on thing for each row execute function act();
"""


@pytest.mark.parametrize(
    ("when", "body"),
    [
        ("before", "return null;"),
        ("after", "insert into log (id, what) values (old.id + 100, 'deleted'); return null;"),
        ("before", "raise exception 'never';"),
        ("before", "execute 'reset role'; return old;"),
    ],
    ids=["keeps the row", "writes elsewhere", "refuses", "changes the role"],
)
async def test_a_trigger_cannot_keep_rows_or_act(install, when, body):
    async with await Engine.open(install.config) as engine:
        await engine.apply_migration("0001_thing", _TRIGGER.format(when=when, body=body))
        for name in ("gone", "stays"):
            await engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
            for query in (
                "insert into thing (id, parent) values (1, null), (2, 1)",
                "insert into log (id, what) values (1, 'first')",
            ):
                await engine.execute(name, Operation(query=query))
        gone = (await engine.tenant("gone")).tenant_no

        await engine.delete_tenant("gone")

        with pytest.raises(TenantNotFoundError):
            await engine.tenant("gone")
        rows = await engine.execute("stays", Operation(query="select id from thing order by id"))
        assert rows.rows == [[1], [2]]
    admin = await asyncpg.connect(install.admin_dsn())
    try:
        for table in ("thing", "log"):
            left = await admin.fetchval(
                f"select count(*) from app.{table} where tenant_id = $1", gone
            )
            assert left == 0
            assert await admin.fetchval(f"select count(*) from app.{table}") > 0
    finally:
        await admin.close()
