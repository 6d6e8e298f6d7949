"""Run by `make wheel` in an environment that has the wheel and nothing of the checkout.

Shows that what is installed is enough: embedded PostgreSQL starts, a schema is applied, a tenant
of each level is made and answers, and one tenant does not see the other's rows.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Operation,
    Settings,
    TenantContext,
)
from tenancy.data_isolation.engine.engine import Engine


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tenancy-wheel-") as home:
        os.chmod(home, 0o755)
        settings = Settings.from_env({}, home=Path(home) / "state")
        async with await Engine.open(EngineConfig(settings=settings)) as engine:
            await engine.apply_migration(
                "0001_notes", "create table notes (id integer primary key, body text not null)"
            )
            for level in IsolationLevel:
                await engine.create_tenant(TenantContext(tenant_id=f"at-{level}"), level=level)
                written = Operation(query="insert into notes values ($1, $2)", params=[1, level])
                await engine.execute(f"at-{level}", written)
            for level in IsolationLevel:
                read = Operation(query="select * from notes")
                result = await engine.execute(f"at-{level}", read)
                assert result.rows == [[1, level.value]], result
                assert [column.name for column in result.columns] == ["id", "body"]


if __name__ == "__main__":
    assert not Path("pyproject.toml").exists(), "run me away from the checkout"
    asyncio.run(main())
    print("the wheel works:", sys.prefix)
