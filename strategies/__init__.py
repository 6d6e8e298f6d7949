"""The isolation strategies and the orchestrator that picks among them."""

from __future__ import annotations

from typing import NoReturn

from tenancy.data_isolation.core.choice import Choice
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.strategies.base import Strategy, TenantGateway
from tenancy.data_isolation.strategies.database_level import DatabaseConfig, DatabaseLevelStrategy
from tenancy.data_isolation.strategies.hybrid_strategy import HybridConfig, HybridStrategy
from tenancy.data_isolation.strategies.performance_optimized_strategy import (
    PerformanceConfig,
    PerformanceOptimizedStrategy,
)
from tenancy.data_isolation.strategies.row_level import RowLevelConfig, RowLevelStrategy
from tenancy.data_isolation.strategies.schema_level import SchemaLevelConfig, SchemaLevelStrategy
from tenancy.data_isolation.strategies.ultra_advanced_orchestrator import (
    OrchestratorConfig,
    UltraAdvancedStrategyOrchestrator,
)

__all__ = [
    "Choice",
    "DatabaseConfig",
    "DatabaseLevelStrategy",
    "HybridConfig",
    "HybridStrategy",
    "OrchestratorConfig",
    "PerformanceConfig",
    "PerformanceOptimizedStrategy",
    "RowLevelConfig",
    "RowLevelStrategy",
    "SchemaLevelConfig",
    "SchemaLevelStrategy",
    "Strategy",
    "StrategyName",
    "TenantGateway",
    "UltraAdvancedStrategyOrchestrator",
]

#: Names of strategies that have a place in the product and are not built yet.
_NOT_YET = frozenset(
    {
        "AIDriverStrategy",
        "AIDrivenStrategy",
        "AIConfig",
        "AnalyticsDrivenStrategy",
        "AnalyticsConfig",
        "PredictiveScalingStrategy",
        "PredictiveScalingConfig",
        "RealTimeAdaptiveStrategy",
        "RealTimeAdaptiveConfig",
        "BlockchainSecurityStrategy",
        "BlockchainConfig",
        "BlockchainConsensusType",
        "CryptographyLevel",
        "EdgeComputingStrategy",
        "EdgeConfig",
        "EdgeRegion",
        "LatencyTier",
        "EventDrivenStrategy",
        "EventDrivenConfig",
        "StreamingProtocol",
    }
)


def __getattr__(name: str) -> NoReturn:
    """Say which strategies do not exist yet (PEP 562).

    `from ... import` replaces the text of an AttributeError by its own, so that names of the
    product get an ImportError; any other name is an ordinary missing attribute.
    """
    if name in _NOT_YET:
        existing = ", ".join(
            item
            for item in __all__
            if item != "Strategy" and item.endswith(("Strategy", "Orchestrator"))
        )
        raise ImportError(f"{name} does not exist yet; {__name__} has {existing}", name=__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
