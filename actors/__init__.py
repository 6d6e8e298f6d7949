"""Tenants as Ray actors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenancy.data_isolation.actors.client import TenancyClient, TenantHandle, connect
    from tenancy.data_isolation.actors.gateway import ActorGateway

__all__ = ["ActorGateway", "TenancyClient", "TenantHandle", "connect"]

_HOMES = {"ActorGateway": "gateway"}


def __getattr__(name: str) -> object:
    # Most modules of this room do without Ray, whose import takes most of a second (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'client')}"), name)
