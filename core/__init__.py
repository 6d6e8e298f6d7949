"""Words and rules of the runtime. No I/O."""

from tenancy.data_isolation.core import errors
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.core.types import (
    Column,
    IsolationLevel,
    Operation,
    Placement,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
    TenantStatus,
    TenantType,
)

__all__ = [
    "Column",
    "EngineConfig",
    "IsolationLevel",
    "Operation",
    "Placement",
    "QueryResult",
    "ServerConfig",
    "Settings",
    "TenancyError",
    "Tenant",
    "TenantContext",
    "TenantId",
    "TenantSize",
    "TenantStatus",
    "TenantType",
    "errors",
]
