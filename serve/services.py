"""What the HTTP interface works with, as objects: it opens and closes none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.credentials import Credentials
from tenancy.data_isolation.engine.fleet import Fleet
from tenancy.data_isolation.engine.moves import Moves
from tenancy.data_isolation.engine.named_operations import NamedOperations
from tenancy.data_isolation.engine.operation_figures import Figures
from tenancy.data_isolation.engine.proposals import Proposals
from tenancy.data_isolation.engine.schema_advice import SchemaAdviser
from tenancy.data_isolation.engine.tracing import Tracing
from tenancy.data_isolation.engine.visible_schema import VisibleRelation
from tenancy.data_isolation.serve.json_web_tokens import TokenVerifier
from tenancy.data_isolation.strategies import UltraAdvancedStrategyOrchestrator
from tenancy.data_isolation.strategies.base import TenantGateway

#: What operations came to at each actor; None = it did not answer.
OperationFigures = Callable[[], Awaitable[Mapping[ActorName, Figures | None]]]
#: Returns when what it looks at answers; raises a `TenancyError` that says what is the matter.
Probe = Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The objects behind the routes. All belong to the event loop that serves.

    `orchestrator` must have been initialized over an `OperationGateway`, so that it makes no
    tenants. `probes` are what `/readyz` asks; tenants can be served without what the advisory
    ones ask.
    """

    settings: Settings
    gateway: TenantGateway
    #: What is asked of tenants themselves; it answers sooner than an actor that would ask it.
    catalog: Catalog
    orchestrator: UltraAdvancedStrategyOrchestrator
    credentials: Credentials
    named_operations: NamedOperations
    fleet: Fleet
    #: The tenants' tables and views as they are now, in the order of their names.
    relations: Callable[[], Awaitable[Sequence[VisibleRelation]]]
    #: Says what would help tenants' statements.
    adviser: SchemaAdviser
    #: Plans moves and records them; another process carries them out.
    moves: Moves
    #: What is proposed for tenants; another process proposes.
    proposals: Proposals
    tokens: TokenVerifier | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    advisory_probes: Mapping[str, Probe] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    #: None where no actors are: then nothing is measured.
    operation_figures: OperationFigures | None = None
    #: None = requests are not traced.
    tracing: Tracing | None = None
