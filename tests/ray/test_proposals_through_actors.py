"""What is sent to tenant actors leads to proposals, made by the mover's actor and seen by all."""

from __future__ import annotations

import asyncio

import pytest
from support.orders import make_tenants

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.configuration import configuration_path
from tenancy.data_isolation.actors.remote import start_mover, wait_for_mover
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.move import MoveState
from tenancy.data_isolation.core.proposal import ProposalState
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.strategies import (
    OrchestratorConfig,
    UltraAdvancedStrategyOrchestrator,
)

SETTINGS = {
    "load_window_s": 0.5,
    "schema_promote_operations_per_s": 2.0,
    "schema_demote_operations_per_s": 1.0,
    "promote_windows": 2,
}


async def test_a_busy_tenant_is_proposed_and_an_accepted_proposal_is_carried_out(start):
    running = await start(**SETTINGS)
    await make_tenants(running.engine, "acme")
    mover = start_mover(configuration_path(running.configuration.settings))
    await asyncio.to_thread(wait_for_mover, mover, 60)
    async with connect() as client:
        while not (found := await client.proposals.proposals(state=ProposalState.PROPOSED)):
            await client.execute("acme", "select count(*) from orders")
        (proposal,) = found
        assert (proposal.tenant_id, proposal.target.level) == ("acme", IsolationLevel.SCHEMA)
        assert (await client.proposals.orchestrator())["deciding"]

        orchestrator = UltraAdvancedStrategyOrchestrator(OrchestratorConfig(auto_optimization=True))
        await orchestrator.initialize(client.engine_config)
        metrics = await orchestrator.get_orchestrator_metrics()
        assert [item["proposal_id"] for item in metrics["promotions"]] == [proposal.proposal_id]
        assert metrics["orchestration"] == "propose"
        # One process decides, and it is the runtime's.
        assert "TENANCY_ORCHESTRATION" in metrics["without_effect"]["auto_optimization"]
        move = await orchestrator.proposals.accept(proposal.proposal_id)
        await orchestrator.cleanup()

        done = await client.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=60)
        assert done.state is MoveState.OPEN
        assert done.report["why"]["proposal_id"] == proposal.proposal_id
        with pytest.raises(InvalidInputError, match="proposals have no"):
            await client.gateway._control(None, "proposals", "store")
