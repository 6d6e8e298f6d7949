"""Opening what the HTTP interface works with, in the process that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from tenancy.data_isolation.actors.channel import ActorLostError
from tenancy.data_isolation.actors.configuration import ActorConfiguration, read_configuration
from tenancy.data_isolation.actors.directory import MOVER_NAME
from tenancy.data_isolation.actors.gateway import ActorGateway
from tenancy.data_isolation.core import EngineConfig
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import UnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.engine import PLAN_ROWS_MAX, Engine
from tenancy.data_isolation.engine.schema_advice import SchemaAdviser
from tenancy.data_isolation.engine.tracing import Tracing
from tenancy.data_isolation.serve.json_web_tokens import token_verifier
from tenancy.data_isolation.serve.operation_gateway import OperationGateway
from tenancy.data_isolation.serve.services import OperationFigures, Probe, Services
from tenancy.data_isolation.strategies import UltraAdvancedStrategyOrchestrator
from tenancy.data_isolation.strategies.base import TenantGateway

#: How long an actor may take to tell of its operations.
_FIGURES_TIMEOUT_S: Final = 2.0


class Composition:
    """Everything that one HTTP process has open. Belongs to the event loop that opened it."""

    def __init__(self, services: Services, closing: AsyncExitStack) -> None:
        self.services = services
        self._closing = closing

    @classmethod
    async def open(cls, configuration_path: Path) -> Composition:
        """Connect to the installation that the file describes, and to its tenant actors."""
        configuration = await asyncio.to_thread(read_configuration, configuration_path)
        config = EngineConfig(servers=configuration.servers, settings=configuration.settings)
        async with AsyncExitStack() as stack:
            engine = await Engine.attach(config)
            stack.push_async_callback(engine.close)
            gateway = ActorGateway(configuration.directory, configuration.public_settings())
            stack.push_async_callback(gateway.close)
            # The tenant's own actor does, whose sessions take up most of what its login may have.
            engine.moves.measure_by(partial(gateway.tenant_size, rows_max=PLAN_ROWS_MAX))
            probes = {**database_probes(engine), "actors": _actors_probe(gateway, configuration)}
            tracing = Tracing.of(configuration.settings, "gateway")
            if tracing is not None:
                stack.push_async_callback(tracing.close)
            services = await open_services(
                engine,
                gateway,
                stack,
                probes=probes,
                advisory_probes={"moves": _mover_probe(gateway)},
                operation_figures=partial(gateway.figures, _FIGURES_TIMEOUT_S)
                if configuration.settings.measurement_window_s
                else None,
                tracing=tracing,
            )
            return cls(services, stack.pop_all())

    async def close(self) -> None:
        """Close everything, in the reverse order."""
        await self._closing.aclose()


async def open_services(
    engine: Engine,
    gateway: TenantGateway,
    closing: AsyncExitStack,
    *,
    probes: Mapping[str, Probe] | None = None,
    advisory_probes: Mapping[str, Probe] | None = None,
    operation_figures: OperationFigures | None = None,
    tracing: Tracing | None = None,
) -> Services:
    """What the routes need, over an engine that is open and a way to tenants."""
    settings = engine.settings
    orchestrator = UltraAdvancedStrategyOrchestrator()
    await orchestrator.initialize(
        EngineConfig(settings=settings, servers=engine.servers, gateway=OperationGateway(gateway))
    )
    closing.push_async_callback(orchestrator.cleanup)
    clock = SystemClock()
    return Services(
        settings=settings,
        gateway=gateway,
        catalog=engine.catalog,
        orchestrator=orchestrator,
        credentials=engine.credentials,
        named_operations=engine.named_operations,
        fleet=engine.fleet,
        relations=engine.relations,
        adviser=SchemaAdviser(
            settings=settings,
            admin=engine.admin,
            catalog=engine.catalog,
            reference=engine.shapes.reference,
        ),
        moves=engine.moves,
        proposals=engine.proposals,
        tokens=token_verifier(settings, clock),
        probes=database_probes(engine) if probes is None else probes,
        advisory_probes=advisory_probes or {},
        clock=clock,
        operation_figures=operation_figures,
        tracing=tracing,
    )


def database_probes(engine: Engine) -> dict[str, Probe]:
    """Whether the catalog and every server answer."""

    async def catalog() -> None:
        await engine.catalog.servers()

    def server(name: ServerName) -> Probe:
        async def probe() -> None:
            async with engine.admin.session(name):
                pass

        return probe

    servers = {f"server {item.name}": server(ServerName(item.name)) for item in engine.servers}
    return {"catalog": catalog, **servers}


def _actors_probe(gateway: ActorGateway, configuration: ActorConfiguration) -> Probe:
    """Whether the shared actors answer: questions that belong to no tenant go to all in turn."""
    count = len(configuration.directory.shared_names())

    async def probe() -> None:
        await asyncio.gather(*(gateway.strategy_counts() for _ in range(count)))

    return probe


def _mover_probe(gateway: ActorGateway) -> Probe:
    """Whether moves are carried out."""

    async def probe() -> None:
        try:
            await gateway.call(MOVER_NAME, "health")
        except ActorLostError as error:
            raise UnavailableError(
                f"moves stand still: the mover cannot be reached: {error}"
            ) from None

    return probe
