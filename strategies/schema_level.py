"""Schema level: one schema and one login role per tenant, in a database that tenants share."""

from __future__ import annotations

from dataclasses import dataclass

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.strategies.base import (
    Creation,
    PlacementStrategy,
    check_server,
    check_switches,
    checked_options,
    chosen_server,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaLevelConfig:
    """How new tenants get a schema."""

    #: The server for new tenants; None leaves it to the engine.
    server: str | None = None
    #: False = a tenant without a schema is an error.
    auto_create_schema: bool = True

    def __post_init__(self) -> None:
        check_switches(self)
        check_server(self)


class SchemaLevelStrategy(PlacementStrategy):
    """A balance: own tables and an own login, shared database and caches."""

    name = StrategyName.SCHEMA_LEVEL
    level = IsolationLevel.SCHEMA

    def __init__(
        self, config: SchemaLevelConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__(clock=clock)
        self.config = checked_options(config, SchemaLevelConfig)

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        server = chosen_server(self.config.server, config, "SchemaLevelConfig.server")
        return Creation(allowed=self.config.auto_create_schema, server=server), {}
