"""How long the doctor and the audit of a start take with a thousand schemas.

Every tenant is of level SCHEMA, with a login and tables of its own, on an embedded server. Run by
`make bench-doctor`. The audit is measured with the first tenants and with all of them: what a start
pays for being sure. The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from report import Figure, figure, print_report
from rich.console import Console

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.settings import EngineConfig, Settings
from tenancy.data_isolation.engine.bootstrap import Bootstrap, inspection_of
from tenancy.data_isolation.engine.drift import DriftFile, Record, compared
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.master_key import master_key

TABLES = """
create table people (id integer primary key, email text unique);
create table notes (id integer primary key, author integer references people, body text);
create index notes_body on notes (body);
create view authors as select id, email from people;
"""
FEW = 10
CREATIONS_AT_ONCE = 4
AUDITS = 5
#: Goals: a start must not get noticeably slower, and a look at everything takes seconds.
AUDIT_GOAL_MS, LOOK_GOAL_S = 1_000.0, 15.0


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tenants", type=int, default=1_000)
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        figures = asyncio.run(_measure(Settings(home=Path(home)), wanted.tenants))
    print_report(figures)


async def _measure(settings: Settings, tenants: int) -> list[Figure]:
    console = Console(stderr=True)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_tables", TABLES)
        await _create(engine, range(FEW))
        few_ms = await _audit_ms(engine)
        console.print(f"making {tenants} tenants")
        await _create(engine, range(FEW, tenants))
        many_ms = await _audit_ms(engine)
        key = await master_key(settings)
        bootstrap = Bootstrap(settings=settings, master_key=key, servers=engine.servers)
        start_ms = await _median_ms(bootstrap.run, 3)
        inspection = inspection_of(settings, engine.admin)
        began = time.perf_counter()
        (look,) = await inspection.look(key)
        look_s = time.perf_counter() - began
        if look.findings or look.fingerprint is None:
            raise SystemExit("\n".join(map(str, look.findings[:10])))
        file = DriftFile(settings.home, ServerName(engine.servers[0].name), key)
        began = time.perf_counter()
        file.write(Record(accepted=look.fingerprint, looked_at=look.fingerprint.taken_at))
        record = file.read()
        if record is None or compared(record, look.fingerprint)[1]:
            raise SystemExit("something changed that nobody has changed")
        drift_s = time.perf_counter() - began
        size_bytes = file.path.stat().st_size
    return [
        figure(f"audit of a start, {FEW} schemas, median", few_ms, "ms", at_most=AUDIT_GOAL_MS),
        figure(
            f"audit of a start, {tenants} schemas, median", many_ms, "ms", at_most=AUDIT_GOAL_MS
        ),
        figure(f"set-up with audit, {tenants} schemas, median", start_ms, "ms"),
        figure(
            f"whole look, {tenants} schemas, passwords included", look_s, "s", at_most=LOOK_GOAL_S
        ),
        figure("objects in the fingerprint", len(look.fingerprint.traits), "objects"),
        figure("fingerprint written, read and compared", drift_s, "s"),
        figure("fingerprint on the disk", size_bytes / 1024, "KiB"),
    ]


async def _create(engine: Engine, numbers: range) -> None:
    turns = asyncio.Semaphore(CREATIONS_AT_ONCE)

    async def create(number: int) -> None:
        async with turns:
            context = TenantContext(tenant_id=f"tenant-{number:04}")
            await engine.create_tenant(context, level=IsolationLevel.SCHEMA)

    await asyncio.gather(*map(create, numbers))


async def _audit_ms(engine: Engine) -> float:
    return await _median_ms(inspection_of(engine.settings, engine.admin).audit, AUDITS)


async def _median_ms(work: Callable[[], Awaitable[object]], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - began) * 1_000)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
