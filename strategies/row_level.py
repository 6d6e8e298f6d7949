"""Row level: many tenants in shared tables, kept apart by row security under a signed binding."""

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
class RowLevelConfig:
    """How new tenants are made in shared tables."""

    #: The server for new tenants; None leaves it to the engine.
    server: str | None = None
    #: False = a tenant that does not exist is an error.
    auto_create_tenant: bool = True

    def __post_init__(self) -> None:
        check_switches(self)
        check_server(self)


class RowLevelStrategy(PlacementStrategy):
    """High density: shared tables, shared connections, the least cost per tenant."""

    name = StrategyName.ROW_LEVEL
    level = IsolationLevel.ROW

    def __init__(self, config: RowLevelConfig | None = None, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self.config = checked_options(config, RowLevelConfig)

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        server = chosen_server(self.config.server, config, "RowLevelConfig.server")
        return Creation(allowed=self.config.auto_create_tenant, server=server), {}
