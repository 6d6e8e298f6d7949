"""The doctor and every start know of moves, and what moves leave behind is found and mended."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install
from support.mortal_mover import Fate, mover
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.errors import TenancyError, UnavailableError, UnsafeRoleError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.drift import Record, compared
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.mending import can_mend, mend
from tenancy.data_isolation.engine.move_rescue import carry_on
from tenancy.data_isolation.engine.server_look import ServerLook
from tenancy.data_isolation.engine.sql_files import SqlFile

pytestmark = pytest.mark.migrated("0001_users", TABLES)

ROW, SCHEMA = IsolationLevel.ROW, IsolationLevel.SCHEMA
WAIT_S = 30.0
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_retry_s": 0.2,
    "move_owner_timeout_s": 1.0,
    "moves_at_once_max": 1,
}
#: What changed a moment ago counts as settled.
IMPATIENT: dict[str, Any] = {"control_timeout_s": 0.001, "move_owner_timeout_s": 0.001}
#: Where a mover dies: (step, what comes before it, which of them).
MADE = ("before execute set local role tenancy_owner; create trigger", "", 8)
HELD = "execute select set_config('lock_timeout', $2"
#: On the way to the catalog's database, and on the way from there.
CLOSED = ("after execute COMMIT", HELD, 1)
FLIPPED = ("before fetchval update tenancy.fence", HELD, 3)
OWN_DATABASE = re.compile("_[0-9a-f]{20}$")
#: What belongs to moves, and what these tests look at besides.
OURS = frozenset(
    {
        "moves",
        "stranded_moves",
        "move_triggers",
        "unlike_reference",
        "fences",
        "orphans",
        "definer_functions",
    }
)


def impatient(config: EngineConfig, **settings: Any) -> EngineConfig:
    changed = dataclasses.replace(config.resolved_settings(), **(IMPATIENT | settings))
    return dataclasses.replace(config, settings=changed)


async def looks(install: Install, config: EngineConfig) -> list[ServerLook]:
    admin = AdminConnections(settings=config.resolved_settings(), servers=servers(config))
    try:
        return await inspection_of(config.resolved_settings(), admin).look(install.master_key)
    finally:
        await admin.close()


def servers(config: EngineConfig) -> tuple[Any, ...]:
    return tuple(config.servers)


def told(seen: Sequence[ServerLook], name: str) -> list[Finding]:
    """What is found, but for other installations on the servers; they have other databases.

    Roles and databases are the whole server's, so only one that is named is told.
    """
    return [
        finding
        for look in seen
        for finding in look.findings
        if finding.check in OURS and (finding.check != "orphans" or name in finding.subject)
        if not _is_anybodys(finding, name)
    ]


def _is_anybodys(finding: Finding, name: str) -> bool:
    """Whether it is about a role or a database that another installation may have left here."""
    # Whatever its prefix is, a tenant's own database ends in its digits.
    in_own_database = finding.check == "fences" and OWN_DATABASE.search(finding.database)
    return bool(in_own_database) or (
        name == "t_" and finding.subject.startswith(("role t_", "database t_"))
    )


async def found(install: Install, config: EngineConfig, name: str = "t_") -> list[Finding]:
    return told(await looks(install, config), name)


async def mended(install: Install, config: EngineConfig, findings: Sequence[Finding]) -> list[str]:
    """Mend what the doctor mends by itself; what was the matter where that failed."""
    admin = AdminConnections(settings=config.resolved_settings(), servers=servers(config))
    try:
        matters = [
            await mend(admin, finding, key=install.master_key)
            for finding in filter(can_mend, findings)
        ]
    finally:
        await admin.close()
    return [matter for matter in matters if matter is not None]


async def die_at(engine: Engine, point: tuple[str, str, int], move: Move) -> None:
    """Carry the move out up to a point."""
    step, beyond, nth = point
    fate = Fate(step, beyond=beyond, nth=nth)
    async with mover(engine, fate), asyncio.timeout(WAIT_S):
        await fate.happened.wait()
    assert not (await engine.moves.move(move.move_id)).is_settled


async def as_admin(install: Install, text: str, *values: Any) -> Any:
    async with install.connected() as connection:
        return await connection.fetchval(text, *values)


def checks(findings: Sequence[Finding]) -> set[str]:
    return {finding.check for finding in findings}


async def finished(engine: Engine, move: Move) -> Move:
    engine.moves.work()
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    if move.state is MoveState.OPEN:
        await engine.moves.confirm(move.move_id)
    return await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)


def unchanged(before: ServerLook, after: ServerLook) -> list[str]:
    """What is told as drift between two looks."""
    assert before.fingerprint is not None
    assert after.fingerprint is not None
    record = Record(accepted=before.fingerprint, looked_at=before.fingerprint.taken_at)
    return [change.key for change in compared(record, after.fingerprint)[1]]


@pytest.mark.timeout(120)
async def test_a_move_under_way_is_as_it_should_be_and_one_left_closed_is_carried_on(
    two_servers: TwoServers,
) -> None:
    install, config = two_servers.install, two_servers.config(**QUICK)
    impatiently = impatient(config)
    async with await Engine.open(config) as engine:
        await engine.apply_migration("0001_users", TABLES)
        await make_tenant(engine, "acme", server=ServerName(SECOND))
        await make_tenant(engine, "waiting")
        before = await looks(install, impatiently)
        assert told(before, "t_") == []
        home = MoveTarget(level=SCHEMA, server=ServerName("main"))
        move = await engine.moves.start("acme", home, priority=9)
        await engine.moves.start("waiting", MoveTarget(level=SCHEMA))
        for point in (MADE, CLOSED):
            await die_at(engine, point, move)
            # Not patient with the tenant, but with whoever may take the move up.
            now = await looks(install, impatient(config, move_owner_timeout_s=60.0))
            assert told(now, "t_") == []
            for first, later in zip(before, now, strict=True):
                assert unchanged(first, later) == []
            async with await Engine.attach(config):
                pass

        assert (await engine.moves.move(move.move_id)).state is MoveState.CUTTING_OVER
        with pytest.raises(UnavailableError):
            await ask(engine, "acme", "select count(*) from users")
        async with install.connected() as owner:
            await owner.fetchval(SqlFile("move.sql").statement("try_own"), move.move_id)
            assert await found(install, impatiently) == []
        (stranded,) = await found(install, impatiently)
        assert (stranded.check, stranded.subject) == ("stranded_moves", f"move {move.move_id}")
        assert can_mend(stranded)
        assert await carry_on(config, move.move_id) is None
        assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]

        async with mover(engine, Fate()):
            await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        await engine.moves.roll_back(move.move_id)
        await die_at(engine, FLIPPED, move)
        assert (await engine.moves.move(move.move_id)).state is MoveState.ROLLED_BACK
        (stranded,) = await found(install, impatiently)
        assert stranded.check == "stranded_moves"
        assert await carry_on(config, move.move_id) is None
        assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]
        assert (await finished(engine, move)).state is MoveState.ROLLED_BACK


@pytest.mark.timeout(120)
async def test_what_is_left_of_a_move_that_nobody_knows_is_taken_away(install: Install) -> None:
    async with opened(install, **QUICK) as engine:
        config = impatient(config_of(engine))
        await make_tenant(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        own = move.target.schema
        await die_at(engine, MADE, move)
        assert await found(install, config, own) == []
        await as_admin(install, "delete from catalog.move")

        findings = await found(install, config, own)
        assert checks(findings) == {"moves", "orphans"}
        left = [finding for finding in findings if finding.check == "moves"]
        assert len(left) == 7
        assert all(move.move_id in finding.subject for finding in left)
        async with await Engine.attach(config):
            pass

        # Who reads or writes a table keeps its triggers where they are, and waits for nobody.
        async with install.connected() as reader, reader.transaction():
            await reader.execute("select from app.users")
            (matter,) = await mended(install, config, findings)
            assert "lock timeout" in matter
            assert len([f for f in await found(install, config, own) if f.check == "moves"]) == 1
        for _ in range(2):
            assert await mended(install, config, await found(install, config, own)) == []
        findings = await found(install, config, own)
        # What a target was made of has rows, perhaps: a person decides.
        assert checks(findings) == {"orphans"}
        for finding in sorted(findings, key=lambda it: it.subject.startswith("role")):
            async with install.connected() as person:
                for statement in finding.statements:
                    await person.execute(statement)
        (entry,) = await found(install, config, own)
        assert "catalog.namespace" in entry.subject
        assert await mended(install, config, [entry]) == []
        assert await found(install, config, own) == []
        await ask(engine, "acme", "insert into users (id, email) values (9, '9@x')")


@pytest.mark.timeout(120)
async def test_writes_that_fail_for_what_a_move_left_are_told_as_such(install: Install) -> None:
    async with opened(install, **QUICK) as engine:
        config = impatient(config_of(engine))
        await make_tenant(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        await die_at(engine, MADE, move)
        await as_admin(install, f"drop table {move.move_id}.changed_source_3")
        await as_admin(
            install,
            "update catalog.move set state = 'failed', cleaned = true, "
            "changed_at = now() - interval '1 day'",
        )
        with pytest.raises(TenancyError):
            await ask(engine, "acme", "insert into users (id, email) values (9, '9@x')")
        findings = [f for f in await found(install, config) if f.check == "moves"]
        (broken,) = [finding for finding in findings if finding.severity == "broken"]
        assert "writes of tenant number 1 fail" in broken.problem
        assert "is failed" in broken.problem
        assert await mended(install, config, findings) == []
        await ask(engine, "acme", "insert into users (id, email) values (9, '9@x')")


#: What somebody makes of what a move made, on a table each.
FORGERIES = (
    "create or replace function {move}.note_source_0() returns trigger language plpgsql "
    "security definer as 'begin return null; end'",
    "grant execute on function {move}.note_source_1() to public",
    "alter function {move}.note_source_2() set row_security = off",
    "alter function {move}.note_source_3() owner to current_user",
    "alter table {target}.late disable trigger tenancy_{move}_insert",
    "drop trigger tenancy_{move}_insert on {target}.plans; create trigger tenancy_{move}_insert "
    "after insert on {target}.plans for each row when (new.name is not null) "
    "execute function {move}.note_target_1()",
)


@pytest.mark.timeout(120)
async def test_what_only_looks_like_a_moves_stops_a_start(install: Install) -> None:
    async with opened(install, **QUICK) as engine:
        config = impatient(config_of(engine))
        await make_tenant(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        await die_at(engine, MADE, move)
        names = {"move": move.move_id, "target": move.target.schema}
        told_before: set[str] = set()
        for text in FORGERIES:
            async with install.connected() as somebody:
                await somebody.execute(text.format(**names))
            findings = await found(install, config)
            forged = {f.subject for f in findings if f.check == "move_triggers"}
            assert len(forged - told_before) == 1, text
            told_before |= forged
        assert len(forged) == len(FORGERIES)
        assert {f.severity for f in findings if f.check == "move_triggers"} == {"unsafe"}
        with pytest.raises(UnsafeRoleError, match="is not what a move makes"):
            await Engine.attach(config)
        assert await mended(install, config, findings) == []
        assert await found(install, config) == []
        async with await Engine.attach(config):
            pass
        # A function of somebody else's is nothing that it can go on with.
        assert (await finished(engine, move)).state is MoveState.FAILED
        assert await found(install, config) == []


@pytest.mark.timeout(120)
async def test_a_move_that_cannot_be_cleaned_up_or_is_never_confirmed_is_told(
    install: Install,
) -> None:
    async with opened(install, **QUICK) as engine:
        config = impatient(config_of(engine))
        await make_tenant(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        await die_at(engine, MADE, move)
        role = move.target.role
        async with install.connected(database="postgres") as elsewhere:
            await elsewhere.execute(
                f"create table kept_{role} (); grant select on kept_{role} to {role}"
            )
        await engine.moves.cancel(move.move_id)
        async with mover(engine, Fate()), asyncio.timeout(WAIT_S):
            while not (move := await engine.moves.move(move.move_id)).error:
                await asyncio.sleep(0.02)
        (unclean,) = await found(install, config)
        assert unclean.check == "moves"
        assert "is cancelled, and what it made is still there: " in unclean.problem
        assert f'role "{role}" cannot be dropped' in unclean.problem
        async with install.connected(database="postgres") as elsewhere:
            await elsewhere.execute(f"drop table kept_{role}")
        assert (await finished(engine, move)).state is MoveState.CANCELLED
        assert await found(install, config) == []


@pytest.mark.timeout(120)
async def test_a_move_that_stays_open_for_too_long_is_told(install: Install) -> None:
    async with opened(install, **QUICK) as engine:
        config = config_of(engine)
        await make_tenant(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        async with mover(engine, Fate()):
            await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        assert await found(install, impatient(config)) == []
        kept_briefly = impatient(config, move_retention_s=0.001)
        (overdue,) = await found(install, kept_briefly)
        assert (overdue.check, overdue.subject) == ("moves", f"move {move.move_id}")
        assert "longer than it is kept" in overdue.problem
        async with await Engine.attach(config_of(engine, move_retention_s=0.001)) as later:
            later.moves.work()
            await later.moves.wait(move.move_id, [], timeout_s=WAIT_S)
        assert await found(install, kept_briefly) == []


def config_of(engine: Engine, **settings: Any) -> EngineConfig:
    changed = dataclasses.replace(engine.settings, **settings)
    return EngineConfig(servers=engine.servers, settings=changed)
