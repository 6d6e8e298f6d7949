"""One server process works for two tenants in turn; the second finds nothing of the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from attacks.product_stage import Level, ProductScene, ProductStage, Way

pytestmark = pytest.mark.asyncio(loop_scope="session")

#: What a session can have of its own, and what leaves it there.
_LEFT = {
    "temporary tables": "create temp table left_table (a int)",
    "cursors": "declare left_cursor cursor with hold for select 1",
    "prepared statements": "prepare left_plan as select 1",
    "settings": "set extra_float_digits = 3",
    "channels": "listen left_channel",
    "advisory locks": "select pg_advisory_lock(4711)",
    "sequence numbers": "insert into tickets (note) values ('numbered')",
    "seeds": "select setseed(0.25)",
}
#: How many of each the session has now.
_FOUND = """
select (select count(*) from pg_class where relname = 'left_table'
          and relnamespace = pg_my_temp_schema()) as "temporary tables",
       (select count(*) from pg_cursors where name = 'left_cursor') as "cursors",
       (select count(*) from pg_prepared_statements where name = 'left_plan')
           as "prepared statements",
       (select count(*) from pg_settings
         where name = 'extra_float_digits' and setting = '3') as "settings",
       (select count(*) from pg_listening_channels()) as "channels",
       (select count(*) from pg_locks where locktype = 'advisory' and objid = 4711
          and pid = pg_backend_pid()) as "advisory locks",
       pg_backend_pid() as pid
"""


@asynccontextmanager
async def _made_easy(scene: ProductScene) -> AsyncIterator[None]:
    """Rights that no tenant has, so that as much as possible can be left."""
    rights = (
        ("temporary on database {own_database}", "{own_role}"),
        ("execute on function pg_catalog.pg_advisory_lock(bigint)", "{own_role}"),
        ("execute on function pg_catalog.pg_lock_status()", "{own_role}"),
    )
    for what, whom in rights:
        await scene.administrate(f"grant {what} to {whom}")
    try:
        yield
    finally:
        for what, whom in rights:
            await scene.administrate(f"revoke {what} from {whom}")


async def test_one_backend_serves_both_tenants_of_level_row(product: ProductStage):
    """What the tests of residue rest on."""
    async with product.scene(Level.ROW, Way.HANDED) as scene:
        asked = "select pg_backend_pid()"
        answers = [
            await scene.ask_victim(asked),
            await scene.send(asked),
            await scene.ask_victim("select count(*) from orders"),
            await scene.send("select count(*) from orders"),
            await scene.ask_victim(asked),
        ]
        assert len({answers[place].rows for place in (0, 1, 4)}) == 1
        assert answers[2].rows != answers[3].rows


async def test_the_next_tenant_finds_nothing_of_the_last(product: ProductStage):
    async with product.scene(Level.ROW, Way.HANDED) as scene, _made_easy(scene):
        answers = await scene.attack_in_turn([*_LEFT.values(), _FOUND, "select lastval()"])
        assert not any(answer.failed for answer in answers), answers
        *_, left, number = answers
        # All of it was there: what a tenant leaves for itself within one batch.
        assert left.rows[0][:-1] == (1, 1, 1, 1, 1, 1)
        assert number.rows

        found = await scene.ask_victim(_FOUND)
        assert found.rows[0][-1] == left.rows[0][-1], "another server process answered"
        assert found.rows[0][:-1] == (0, 0, 0, 0, 0, 0)
        assert (await scene.ask_victim("select lastval()")).code == "55000"


async def test_what_one_tenant_sets_another_does_not_work_under(product: ProductStage):
    """Each setting that a session can change is as it was when the next tenant asks."""
    settings = (
        "select name, setting from pg_settings where name <> all "
        "('{transaction_isolation,transaction_read_only}') order by name"
    )
    changes = await _changeable(product)
    async with product.scene(Level.ROW, Way.HANDED) as scene:
        before = await scene.ask_victim(settings)
        changed = 0
        for number, (name, value) in enumerate(changes):
            answers = await scene.attack_in_turn([f"set {name} to {value}", f"show {name}"])
            changed += not any(answer.failed for answer in answers)
            if number % 10 == 0:
                assert (await scene.ask_victim(settings)).rows == before.rows, changes[:number]
        assert (await scene.ask_victim(settings)).rows == before.rows
        assert changed > 100


async def _changeable(product: ProductStage) -> list[tuple[str, str]]:
    """Settings that anybody may change, each with another value than it has."""
    async with product.scene(Level.ROW, Way.DIRECT) as scene:
        rows = await scene.administrate(
            "select name, case when vartype = 'bool' then "
            "case setting when 'on' then 'off' else 'on' end "
            "when vartype = 'enum' then quote_literal(enumvals[array_length(enumvals, 1)]) "
            "when vartype in ('integer', 'real') then min_val else '''changed''' end "
            "from pg_settings where context = 'user' and name not in "
            # These end the session, the statement or the order of its answers.
            "('transaction_isolation', 'transaction_read_only', 'transaction_deferrable', "
            "'client_encoding', 'statement_timeout', 'transaction_timeout', "
            "'idle_session_timeout') order by name"
        )
    return [(row[0], row[1]) for row in rows]
