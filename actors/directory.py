"""Which actor represents a tenant: a pure function of the tenant and of one versioned list.

Rules this module keeps:

* Shared actors are a fixed list per region. A tenant maps to one of them by rendezvous hashing
  (D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
  Transactions on Networking 6(1), 1998): the actor whose hash with the tenant id is the highest.
  Whoever has the list computes the same actor, without asking anyone, and an actor that joins takes
  its share of tenants from all others while no tenant moves between those.
* A tenant that pays for it, or that the list names, has an actor of its own.
* A list has a version, so that one who works with an old list can be told.
* Two actors may work for one tenant for a while (an old list, a partition): that costs memory and
  is no danger, because PostgreSQL decides by epochs what a session may do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import Region, TenantId, TenantNo, parse_word
from tenancy.data_isolation.core.types import Tenant, TenantType

#: An actor as Ray knows it, unique in the namespace. Never holds a customer's name.
ActorName = NewType("ActorName", str)

#: The actor that carries moves out. One in a cluster, wherever there is room for it.
MOVER_NAME = ActorName("tenancy-mover")
#: The region of actors where none is configured.
DEFAULT_REGION = Region("default")

_SHARED_PREFIX = "tenancy-shared-"
_DEDICATED_PREFIX = "tenancy-dedicated-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    """The versioned list of shared actors per region, and the tenants with an actor of their own.

    The first region serves the tenants that name none, or one that has no actors. `dedicated` names
    tenants that get their own actor; those of type enterprise get one anyway.
    """

    version: int
    shared: Mapping[Region, tuple[ActorName, ...]]
    dedicated: frozenset[TenantId] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if not self.shared or not all(self.shared.values()):
            raise SettingError("a directory of actors needs a region, and every region an actor")

    def shared_actor(self, tenant_id: TenantId, region: Region | None = None) -> ActorName:
        """The shared actor of a tenant, among those of `region`."""
        return highest_random_weight(tenant_id, self.shared[self._region(region)])

    def actor_of(self, tenant: Tenant) -> ActorName:
        """The actor that represents `tenant`: its own, or a shared one."""
        if tenant.tenant_type is TenantType.ENTERPRISE or tenant.tenant_id in self.dedicated:
            return dedicated_name(tenant.tenant_no, self._region(tenant.region))
        return self.shared_actor(tenant.tenant_id, tenant.region)

    def shared_names(self) -> tuple[ActorName, ...]:
        """All shared actors, region by region."""
        return tuple(name for names in self.shared.values() for name in names)

    def region_of(self, name: ActorName) -> Region | None:
        """The region in which an actor runs; None for one that this list knows nothing of."""
        if is_dedicated(name):
            region = Region(name.removeprefix(_DEDICATED_PREFIX).rpartition("-")[0])
            return region if region in self.shared else None
        return next((region for region, names in self.shared.items() if name in names), None)

    def _region(self, region: Region | None) -> Region:
        if region is not None and region in self.shared:
            return region
        return next(iter(self.shared))


def highest_random_weight(tenant_id: TenantId, names: tuple[ActorName, ...]) -> ActorName:
    """The name whose hash with the tenant id is the highest.

    The hash is BLAKE2b and not Python's own, which is different in every process.
    """
    if len(names) == 1:
        return names[0]
    return max(names, key=lambda name: (_weight(name, tenant_id), name))


def build_directory(
    *,
    version: int,
    actors_per_region: int,
    regions: tuple[Region, ...] = (DEFAULT_REGION,),
    dedicated: frozenset[TenantId] = frozenset(),
) -> Directory:
    """A directory of so many shared actors in each region, with the names that belong to them."""
    shared = {
        Region(parse_word(region, "region")): tuple(
            ActorName(f"{_SHARED_PREFIX}{region}-{number}") for number in range(actors_per_region)
        )
        for region in regions
    }
    return Directory(version=version, shared=shared, dedicated=dedicated)


def dedicated_name(tenant_no: TenantNo, region: Region = DEFAULT_REGION) -> ActorName:
    """The name of a tenant's own actor; made of its number, which tells outsiders nothing."""
    return ActorName(f"{_DEDICATED_PREFIX}{region}-{tenant_no}")


def is_shared(name: str) -> bool:
    """Whether a name is one of a shared tenant actor."""
    return name.startswith(_SHARED_PREFIX)


def is_dedicated(name: str) -> bool:
    """Whether a name is one of a tenant's own actor."""
    return name.startswith(_DEDICATED_PREFIX)


def _weight(name: ActorName, tenant_id: TenantId) -> bytes:
    return hashlib.blake2b(f"{name}/{tenant_id}".encode(), digest_size=8).digest()
