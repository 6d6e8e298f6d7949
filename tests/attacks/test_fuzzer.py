"""Thousands of hostile statements; no answer has a row of another tenant in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from attacks.answer import Answer
from attacks.attack import WeakLogin, WeakPool
from attacks.fuzz_grammar import FUNCTIONS, RELATIONS, Vocabulary, drawn, vocabulary
from attacks.product_stage import Level, ProductScene, ProductStage, Way
from attacks.raw_session import RawSession
from attacks.scene import CANARY, Scene
from attacks.weak_stage import WeakStage
from tenancy.data_isolation.engine.session_key import SessionKey

#: Runs a script, and gives what came back.
Run = Callable[[list[str]], Awaitable[list[Answer]]]

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

#: Statements by place and way: 12,000 with each version of PostgreSQL.
_STATEMENTS = {
    (Level.ROW, Way.DIRECT): 5_000,
    (Level.HYBRID, Way.DIRECT): 2_500,
    (Level.SCHEMA, Way.DIRECT): 1_500,
    (Level.DATABASE, Way.DIRECT): 500,
    (Level.ROW, Way.HANDED): 2_000,
    (Level.ROW, Way.GUARDED): 500,
}
_SCRIPT_TIMEOUT_S = 20.0


async def _words(scene: Scene) -> Vocabulary:
    functions = await scene.administrate(FUNCTIONS)
    relations = await scene.administrate(RELATIONS)
    return vocabulary([(row[0], row[1]) for row in functions], [row[0] for row in relations])


def _leaks(answers: list[Answer]) -> bool:
    return any(CANARY in text for answer in answers for text in answer.cells())


@asynccontextmanager
async def _attacker(scene: ProductScene) -> AsyncIterator[Run]:
    """What runs a script as the attacker, in a session that is empty before each."""
    if scene.session is None:
        yield scene.attack_in_turn
        return
    stage, party = scene.stage, scene.attacker
    placement = scene.pair.attacker.placement
    assert placement is not None
    path = SessionKey.of(placement).search_path
    async with RawSession.opened(
        stage.install.role_dsn(party.role, party.database), search_path=path
    ) as session:
        signed = stage.install.binding(
            scene.pair.attacker.tenant_no,
            placement.epoch,
            session.backend_pid,
            database=party.database,
        )

        async def run(script: list[str]) -> list[Answer]:
            await session.empty(f"select set_config('tenancy.binding', '{signed}', false)")
            async with asyncio.timeout(_SCRIPT_TIMEOUT_S):
                return [await session.send(scene.filled(text)) for text in script]

        yield run


@pytest.mark.parametrize(
    ("level", "way"), _STATEMENTS, ids=[f"{level}-{way}" for level, way in _STATEMENTS]
)
async def test_no_statement_finds_a_row_of_another_tenant(
    product: ProductStage, level: Level, way: Way
):
    tried = answered = 0
    async with product.scene(level, way) as scene, _attacker(scene) as run:
        untouched = await scene.untouched_state()
        scripts = await asyncio.to_thread(drawn, await _words(scene), _STATEMENTS[level, way])
        for number, script in enumerate(scripts):
            answers = await run(script)
            scene.answers.clear()
            assert not _leaks(answers), script
            if number % 20 == 0:
                assert await scene.victims_state() == untouched, script
            tried += len(script)
            answered += sum(not answer.failed for answer in answers)
        assert await scene.victims_state() == untouched
    assert tried >= _STATEMENTS[level, way]
    # Else nothing was tried but the grammar. The guard refuses nearly all of it.
    assert answered > tried / (100 if way is Way.GUARDED else 10)


async def test_the_same_statements_find_rows_on_the_weak_setup(weak: WeakStage):
    """The positive control."""
    async with weak.scene(WeakLogin.SHARED, WeakPool.PLAIN) as scene:
        scripts = await asyncio.to_thread(drawn, await _words(scene), 2_000)
        found = 0
        async with RawSession.opened(scene.dsn(WeakLogin.SHARED)) as session:
            for script in scripts:
                await session.empty("set app.tenant = 'a'")
                found += _leaks([await session.send(scene.filled(text)) for text in script])
    assert found > 5
