"""The orchestrator moves tenants: what leads to a proposal, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install
from support.reviewing import BUSY, QUICK, QUIET, WINDOW_S, Fleet, fleet, tell_load

from tenancy.data_isolation.core.errors import (
    ConflictError,
    MoveRefusedError,
    ProposalNotFoundError,
)
from tenancy.data_isolation.core.identifiers import Region
from tenancy.data_isolation.core.level_policy import Action
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.proposal import Decider, OrchestrationMode, ProposalState
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel, Operation, TenantContext
from tenancy.data_isolation.strategies import (
    OrchestratorConfig,
    UltraAdvancedStrategyOrchestrator,
)

pytestmark = pytest.mark.migrated("0001_users", TABLES)

ROW, SCHEMA, DATABASE = IsolationLevel
PROPOSE, AUTOMATIC = OrchestrationMode.PROPOSE, OrchestrationMode.AUTOMATIC


@pytest.fixture
async def made(install: Install) -> AsyncIterator[Fleet]:
    async with fleet(install) as opened_fleet:
        yield opened_fleet


def acts(proposal: Any) -> list[str]:
    return [item["act"] for item in proposal.acts]


async def test_a_busy_tenant_is_moved_while_it_works_and_goes_back_when_it_is_idle(made: Fleet):
    await make_tenant(made.engine, "acme")
    look = made.review(AUTOMATIC)
    written: list[int] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            number = 1_000 + len(written)
            await ask(
                made.engine,
                "acme",
                "insert into users (id, email) values ($1, $2)",
                number,
                str(number),
            )
            written.append(number)

    await made.window(look, acme=BUSY)
    assert await made.engine.proposals.proposals() == []
    await made.window(look, acme=BUSY)

    (proposal,) = await made.engine.proposals.proposals()
    assert (proposal.state, proposal.action) == (ProposalState.ACCEPTED, Action.PROMOTE)
    assert proposal.accepted_by is Decider.ORCHESTRATOR
    assert "2 windows in a row reached what leads to schema" in proposal.reasons[0]
    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        move = await made.is_open(proposal.move_id)
        before = len(written)
        while len(written) < before + 5:
            await asyncio.sleep(0.01)
        stop.set()
    assert move.priority < 0
    assert move.report["why"]["reasons"] == list(proposal.reasons)
    assert await made.level("acme") is SCHEMA

    # It is confirmed after its time, and not before.
    made.clock.catch_up()
    assert await look.look()
    assert (await made.engine.moves.move(move.move_id)).state is MoveState.OPEN
    made.clock.catch_up(made.engine.settings.orchestrated_retention_s)
    while not (await made.engine.moves.move(move.move_id)).is_settled:
        # The mover may not have compared the copies yet, and then nothing is confirmed.
        assert await look.look()
        await asyncio.sleep(0.05)
    assert await look.look()
    done = await made.engine.moves.move(move.move_id)
    proposal = await made.engine.proposals.proposal(proposal.proposal_id)
    assert done.state is MoveState.CONFIRMED
    assert acts(proposal) == ["proposed", "started", "confirming", "confirmed"]
    assert [item["act"] for item in done.report["why"]["acts"]] == acts(proposal)

    # Idle for long enough, but it was moved lately.
    await made.windows(4, look)
    assert len(await made.engine.proposals.proposals()) == 1
    made.clock.catch_up(made.engine.settings.promotion_cooldown_s)
    await made.window(look)
    back, _ = await made.engine.proposals.proposals()
    assert (back.action, back.target.level) == (Action.DEMOTE, ROW)
    await made.is_open(back.move_id)
    assert await made.level("acme") is ROW
    rows = await ask(made.engine, "acme", "select count(*) from users where id >= 1000")
    assert rows.rows == [[len(written)]]


async def test_a_proposal_is_seen_by_all_and_carried_out_by_whoever_accepts(
    made: Fleet, install: Install
):
    await make_tenant(made.engine, "acme")
    look = made.review(PROPOSE)
    await made.windows(5, look, acme=BUSY)
    async with opened(install, tables=False, **QUICK) as other:
        (proposal,) = await other.proposals.proposals(state=ProposalState.PROPOSED)
        assert (proposal.tenant_id, proposal.target.level) == ("acme", SCHEMA)
        assert proposal.evidence["operations_per_s"] >= BUSY / WINDOW_S
        assert proposal.evidence["latency_ms"] > 0
        assert proposal.evidence["rows"] == 3
        assert await other.moves.moves() == []

        move = await made.proposals(other).accept(proposal.proposal_id)
        assert move.report["why"]["by"] == "operator"
        with pytest.raises(ConflictError, match=move.move_id):
            await other.proposals.accept(proposal.proposal_id)
        with pytest.raises(ConflictError, match="accepted already"):
            await other.proposals.dismiss(proposal.proposal_id)
    await made.is_open(move.move_id)
    # What a person has started is for a person to confirm.
    made.clock.catch_up(made.engine.settings.orchestrated_retention_s)
    assert await look.look()
    assert (await made.engine.moves.move(move.move_id)).wish is None
    with pytest.raises(ProposalNotFoundError):
        await made.engine.proposals.proposal("p_" + "0" * 20)


async def test_what_is_dismissed_or_not_true_any_more_goes(made: Fleet):
    for name in ("acme", "globex"):
        await make_tenant(made.engine, name)
    look = made.review(PROPOSE)
    await made.windows(2, look, acme=BUSY, globex=BUSY)
    (acme,) = await made.proposed("acme")
    (globex,) = await made.proposed("globex")
    dismissed = await made.proposals().dismiss(acme.proposal_id, reason="it is a bulk load")
    assert dismissed.state is ProposalState.DISMISSED
    assert dismissed.acts[-1]["reason"] == "it is a bulk load"

    # In between, a proposal stands; well below it goes, after as many windows as it needed to come.
    await made.windows(3, look, acme=BUSY, globex=BUSY // 2 + 1)
    assert [item.tenant_id for item in await made.proposed()] == ["globex"]
    await made.window(look, globex=QUIET)
    assert await made.proposed("globex")
    await made.window(look, globex=QUIET)
    assert await made.proposed() == []
    gone = await made.engine.proposals.proposal(globex.proposal_id)
    assert gone.state is ProposalState.WITHDRAWN
    assert "below what leads up" in gone.acts[-1]["reason"]

    await made.windows(2, look, acme=BUSY)
    assert await made.proposed("acme") == []
    made.clock.pass_s(made.engine.settings.promotion_failed_cooldown_s)
    await made.window(look, acme=BUSY)
    assert len(await made.proposed("acme")) == 1


async def test_a_move_that_makes_a_tenant_slower_is_rolled_back(made: Fleet, install: Install):
    tenant = await make_tenant(made.engine, "acme")
    look = made.review(AUTOMATIC)
    await made.windows(2, look, acme=BUSY)
    (proposal,) = await made.engine.proposals.proposals()
    await made.is_open(proposal.move_id)
    made.clock.catch_up(3 * WINDOW_S)
    slow_ms = 10 * proposal.evidence["latency_ms"] + 10
    async with install.connected() as connection:
        for number in (1, 2):
            began_at = made.clock.now() - timedelta(seconds=number * WINDOW_S)
            await tell_load(connection, tenant.tenant_no, began_at, 50, slow_ms)
    assert await look.look()
    done = await made.settled(proposal.move_id)
    assert await look.look()

    assert done.state is MoveState.ROLLED_BACK
    assert await made.level("acme") is ROW
    proposal = await made.engine.proposals.proposal(proposal.proposal_id)
    assert acts(proposal) == ["proposed", "started", "rolling_back", "rolled_back"]
    assert "more than 2 times as long" in proposal.acts[-2]["reason"]
    # Longer than after a move that stayed it is left alone.
    made.clock.catch_up(made.engine.settings.promotion_cooldown_s)
    await made.windows(3, look, acme=BUSY)
    assert len(await made.engine.proposals.proposals()) == 1
    made.clock.catch_up(made.engine.settings.promotion_failed_cooldown_s)
    await made.window(look, acme=BUSY)
    assert len(await made.engine.proposals.proposals()) == 2


async def test_a_tenant_that_takes_its_neighbours_time_is_promoted(install: Install):
    few = {
        "schema_promote_operations_per_s": 1_000.0,
        "busy_neighbours_operations_per_s": 10 / WINDOW_S,
    }
    async with fleet(install, **few) as made:
        loud = await make_tenant(made.engine, "loud")
        await make_tenant(made.engine, "meek")
        look = made.review(PROPOSE)
        async with install.connected() as connection:
            for _ in range(2):
                await made.window(meek=12)
                began_at = made.clock.now() - timedelta(seconds=WINDOW_S)
                # Few operations of long duration.
                await tell_load(connection, loud.tenant_no, began_at, 3, 10_000)
                await connection.execute(
                    "update catalog.load_window set operations = operations + 3, "
                    "busy_us = busy_us + 30000000 where began_at = $1",
                    began_at,
                )
        made.clock.pass_s(WINDOW_S)
        assert await look.look()
        (proposal,) = await made.proposed()
        assert proposal.tenant_id == "loud"
        assert "% of its server's time" in proposal.reasons[0]


async def test_two_processes_decide_once_and_begin_no_more_than_the_budget_has(install: Install):
    budget = {"orchestrated_moves_per_hour_max": 1}
    async with (
        fleet(install, **budget) as made,
        opened(install, tables=False, **(QUICK | budget)) as other,
    ):
        for name in ("acme", "globex"):
            await make_tenant(made.engine, name, users=1)
        first, second = made.review(AUTOMATIC), made.review(AUTOMATIC, other)
        await made.window(acme=BUSY, globex=BUSY)
        await made.window(acme=BUSY, globex=BUSY)
        made.clock.pass_s(WINDOW_S)
        looked = await asyncio.gather(*(item.look() for item in (first, second) * 5))
        # Of two looks of one process at the same time, one finds that the other has been there.
        assert any(looked[0::2]) != any(looked[1::2])
        assert len(await other.proposals.proposals()) == 2
        (move,) = await other.moves.moves()
        assert (await other.proposals.orchestrator())["deciding"]

        # The other goes on where the first one stopped, and counts no window twice.
        holder, follower = (first, second) if any(looked[0::2]) else (second, first)
        await holder.close()
        assert not (await other.proposals.orchestrator())["deciding"]
        upto = (await other.proposals.orchestrator())["looked_upto"]
        assert await follower.look()
        assert (await other.proposals.orchestrator())["looked_upto"] == upto

        (left,) = await made.proposed()
        await made.is_open(move.move_id)
        assert await follower.look()
        assert len(await other.moves.moves()) == 1
        made.clock.pass_s(3_600)
        assert await follower.look()
        newest, _ = await other.moves.moves()
        assert newest.tenant_id == left.tenant_id


async def test_a_plan_that_is_refused_is_remembered(made: Fleet, install: Install):
    await make_tenant(made.engine, "acme")
    look = made.review(AUTOMATIC)
    async with install.connected() as connection:
        behind = "update catalog.namespace set version = version - 1 where schema = 'app'"
        await connection.execute(behind)
        await made.windows(4, look, acme=BUSY)
        (proposal,) = await made.engine.proposals.proposals()
        assert proposal.state is ProposalState.REFUSED
        assert acts(proposal) == ["proposed", "refused"]
        assert "finish the migration first" in proposal.acts[-1]["reason"]
        assert await made.engine.moves.moves() == []

        # A person may try it again and again.
        await look.close()
        made.clock.pass_s(made.engine.settings.promotion_failed_cooldown_s)
        look = made.review(PROPOSE)
        await made.window(look, acme=BUSY)
        (proposal,) = await made.proposed()
        with pytest.raises(MoveRefusedError, match="finish the migration"):
            await made.engine.proposals.accept(proposal.proposal_id)
        found = await made.engine.proposals.proposal(proposal.proposal_id)
        assert (found.state, acts(found)) == (ProposalState.PROPOSED, ["proposed", "refused"])
        await connection.execute(behind.replace("- 1", "+ 1"))
    await made.engine.proposals.accept(proposal.proposal_id)


async def test_who_is_left_where_he_is(made: Fleet):
    await make_tenant(made.engine, "mixed", hybrid=True)
    for name in ("asleep", "moving"):
        await make_tenant(made.engine, name)
    # By others than the orchestrator, who may have their reasons.
    await make_tenant(made.engine, "placed", SCHEMA)
    look = made.review(AUTOMATIC)
    await made.window(look, mixed=BUSY, asleep=BUSY, moving=BUSY, placed=1)
    await made.window(mixed=BUSY, asleep=BUSY, moving=BUSY, placed=1)
    await made.engine.suspend_tenant("asleep")
    move = await made.engine.moves.start("moving", MoveTarget(level=SCHEMA))
    made.clock.pass_s(WINDOW_S)
    assert await look.look()

    (proposal,) = await made.engine.proposals.proposals()
    assert (proposal.tenant_id, proposal.movable) == ("mixed", False)
    assert "a hybrid tenant cannot be moved yet" in proposal.reasons
    assert [item.move_id for item in await made.engine.moves.moves()] == [move.move_id]
    with pytest.raises(MoveRefusedError, match="hybrid"):
        await made.engine.proposals.accept(proposal.proposal_id)

    await made.is_open(move.move_id)
    await made.engine.moves.confirm(move.move_id)
    await made.settled(move.move_id)
    made.clock.catch_up(made.engine.settings.promotion_cooldown_s)
    await made.windows(4, look, moving=1, placed=1)
    assert {item.tenant_id for item in await made.engine.proposals.proposals()} == {"mixed"}
    assert await made.level("moving") is await made.level("placed") is SCHEMA


async def test_compliance_and_region_have_a_say(made: Fleet, install: Install):
    for name, regimes in (("clinic", ("hipaa",)), ("plain", ())):
        context = TenantContext(tenant_id=name, compliance=regimes)
        await made.engine.create_tenant(context, level=ROW)
    look = made.review(PROPOSE)
    await made.window(look, clinic=1, plain=1)
    (proposal,) = await made.proposed()
    assert (proposal.tenant_id, proposal.target.level) == ("clinic", DATABASE)
    assert "regulated data" in proposal.reasons[0]
    assert proposal.evidence["demanded"]

    async with install.connected() as connection:
        await connection.execute(
            "update catalog.tenant set region = 'eu' where tenant_id = 'plain'; "
            "update catalog.server set region = 'us' where name = 'main'; "
            "insert into catalog.server values ('second', 'eu')"
        )
    await made.window(look, plain=1)
    (proposal,) = await made.proposed("plain")
    assert proposal.action is Action.RELOCATE
    assert proposal.target == MoveTarget(region=Region("eu"))


async def test_what_is_counted(made: Fleet, install: Install):
    tenant = await make_tenant(made.engine, "acme", users=0)
    look = made.review(PROPOSE)
    async with install.connected() as connection:
        reads = [Operation(query="select 1"), Operation(query="select nothing")]
        await made.engine.execute_batch("acme", reads * 3)
        await made.engine.execute_batch("acme", [Operation(query="select 1")] * 2, atomic=True)
        await made.window(look, acme=BUSY - 8)
        row = await connection.fetchrow("select tenant_no, operations, busy_us from catalog.load")
        assert tuple(row)[:2] == (tenant.tenant_no, BUSY)
        assert row["busy_us"] > 0

        # Windows that nobody has told of count for nothing.
        made.clock.pass_s(5 * WINDOW_S)
        assert await look.look()
        await made.window(look, acme=BUSY)
        assert len(await made.proposed()) == 1
        told = await connection.fetch("select operations, reports from catalog.load_window")
        assert [tuple(row) for row in told] == [(BUSY, 1), (BUSY, 1)]

        # What is older than is needed goes.
        made.clock.pass_s(300 * WINDOW_S)
        await made.engine.loads.tell()
        await made.window(look, acme=1)
        assert await connection.fetchval("select count(*) from catalog.load") == 1


async def test_switched_off_it_counts_nothing_and_takes_no_place(install: Install):
    async with fleet(install, orchestration="off") as made:
        await make_tenant(made.engine, "acme")
        look = made.review(OrchestrationMode.OFF)
        look.start()
        await made.window(acme=BUSY)
        assert not (await made.engine.proposals.orchestrator())["deciding"]
        async with install.connected() as connection:
            assert await connection.fetchval("select count(*) from catalog.load_window") == 0


async def test_the_orchestrator_of_a_library_moves_tenants_itself(made: Fleet):
    await make_tenant(made.engine, "acme")
    look = made.review(PROPOSE)
    await made.windows(2, look, acme=BUSY)
    await look.close()
    config = EngineConfig(settings=made.engine.settings, gateway=made.engine)

    proposing = UltraAdvancedStrategyOrchestrator(OrchestratorConfig())
    await proposing.initialize(config)
    metrics = await proposing.get_orchestrator_metrics()
    (told,) = metrics["promotions"]
    assert (told["tenant_id"], told["isolation_level"]) == ("acme", "schema")
    assert (metrics["orchestration"], metrics["without_effect"]) == ("propose", {})
    await proposing.cleanup()
    assert await made.engine.moves.moves() == []

    # It looks at once, and then every now and then.
    moving = UltraAdvancedStrategyOrchestrator(
        OrchestratorConfig(auto_optimization=True, optimization_interval_minutes=5)
    )
    await moving.initialize(config)
    while not (moves := await made.engine.moves.moves()):
        await asyncio.sleep(0.01)
    await made.is_open(moves[0].move_id)
    metrics = await moving.get_orchestrator_metrics()
    assert (metrics["orchestration"], metrics["without_effect"]) == ("automatic", {})
    assert metrics["promotions"] == []
    with pytest.raises(ConflictError, match="accepted already"):
        await moving.proposals.dismiss(told["proposal_id"])
    await moving.cleanup()
