"""One run of `tenancy doctor --mend` over several findings: what it says of each."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from support.doctor_stage import Stage
from support.mortal_mover import Fate, mover

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.serve.check import Check, Result
from tenancy.data_isolation.serve.server_checks import DoctorOptions, check_servers

#: Of some, one mend mends another finding as well: a function that is dropped has no rights any
#: more. Of some, the mend works only after another one: a key leads to another key.
_BREAKS = (
    "create function tenancy.tenant(int) returns bigint language sql as 'select 1::bigint'",
    "grant execute on function tenancy.tenant(int) to tenancy_rows",
    "alter table app.people drop constraint people_pkey cascade",
    'alter role "{scarlet_role}" nologin',
    "alter role tenancy_rows bypassrls",
    "alter system set log_statement = 'all'",
)


async def _doctor(stage: Stage, *, mend: bool) -> list[Check]:
    settings = dataclasses.replace(
        stage.install.settings,
        postgres_dsn=stage.install.server_config.dsn,
        control_timeout_s=0.001,
    )

    def agreed(_: Sequence[Finding]) -> bool:
        return True

    options = DoctorOptions(mend=agreed if mend else None)
    return [check async for check in check_servers(settings, options)]


def _told(checks: list[Check], name: str) -> list[str]:
    return [check.detail for check in checks if check.name == name]


async def test_what_was_mended_is_told_as_mended(stage: Stage):
    sound = await _doctor(stage, mend=False)
    assert [check.detail for check in sound if check.result is Result.FAIL] == []
    await stage.run([*_BREAKS, "select pg_reload_conf()"])
    await stage.wait_for("log_statement", "all")
    broken = [check.detail for check in await _doctor(stage, mend=False) if check.finding]
    assert len(broken) > len(_BREAKS)

    checks = await _doctor(stage, mend=True)

    assert _told(checks, "not mended") == []
    mended = _told(checks, "mended")
    assert len(mended) == len(set(mended)) >= len(_BREAKS)
    for words in (
        "function tenancy.tenant(integer) is not one of the runtime's",
        "constraint people_pkey of app.people is missing",
        "constraint notes_author_fkey of app.notes is missing",
        "may not log in",
        "setting log_statement is all",
    ):
        assert any(words in detail for detail in mended), (words, mended)
    # The look after the mends agrees, and so does the next run.
    assert [check.detail for check in checks if check.result is Result.FAIL] == []
    again = await _doctor(stage, mend=False)
    assert [check.detail for check in again if check.result is Result.FAIL] == []
    assert [check.detail for check in again if check.name == "settings"] == [
        "none that is dangerous"
    ]


async def test_what_its_sql_does_not_mend_is_told_so(stage: Stage):
    await stage.run(
        [
            "create materialized view app.copied as select 1 as a",
            "alter materialized view app.copied owner to tenancy_owner",
            "create view public.of_copied as select a from app.copied",
        ]
    )
    checks = await _doctor(stage, mend=True)

    (told,) = _told(checks, "not mended")
    assert "materialized view app.copied cannot have row security" in told
    assert "other objects depend on it" in told
    assert _told(checks, "mended") == []
    assert [check.name for check in checks if check.result is Result.FAIL] == ["policies"]

    await stage.run(["drop view public.of_copied"])
    assert len(_told(await _doctor(stage, mend=True), "mended")) == 1
    assert await stage.findings() == []


async def test_a_move_that_has_left_its_tenant_closed_is_carried_on(stage: Stage):
    async with await Engine.attach(stage.install.config) as engine:
        move = await engine.moves.start("rowan", MoveTarget(level=IsolationLevel.DATABASE))
        held = "execute select set_config('lock_timeout', $2"
        fate = Fate("after execute COMMIT", beyond=held, nth=2)
        async with mover(engine, fate), asyncio.timeout(30):
            await fate.happened.wait()
        await stage.run(["update catalog.move set changed_at = now() - interval '1 hour'"])

        (stranded,) = _told(await _doctor(stage, mend=False), "leftovers")
        assert f"move {move.move_id} has left tenant rowan closed (open)" in stranded
        checks = await _doctor(stage, mend=True)
        assert _told(checks, "mended") == [stranded.partition(" (database")[0]]
        assert [check.detail for check in checks if check.result is Result.FAIL] == []

        # A hybrid tenant that is made meanwhile has nothing of the move.
        await engine.create_tenant(
            TenantContext(tenant_id="maple"), level=IsolationLevel.ROW, hybrid=True
        )
        assert _told(await _doctor(stage, mend=False), "tables") == [
            "all are scoped, and like their reference"
        ]
        await engine.delete_tenant("maple")
        # As it was found.
        engine.moves.work()
        await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=30)
        await engine.moves.roll_back(move.move_id)
        move = await engine.moves.wait(move.move_id, [], timeout_s=30)
        assert move.state is MoveState.ROLLED_BACK
