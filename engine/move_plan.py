"""What a move will do, before anything of it is done, and what stands against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

from tenancy.data_isolation.core.errors import (
    MoveRefusedError,
    ServerNotFoundError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Region,
    RoleName,
    SchemaName,
    ServerName,
    opaque_name,
)
from tenancy.data_isolation.core.move import MoveTarget
from tenancy.data_isolation.core.move_estimate import MoveEstimate
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant, TenantStatus
from tenancy.data_isolation.engine.layout import APP_SCHEMA, ROWS_ROLE, shared_database


class RefusalCode(StrEnum):
    """Why a move cannot be."""

    ALREADY_THERE = "already_there"
    NOT_ACTIVE = "not_active"
    MOVE_UNDER_WAY = "move_under_way"
    RESIDENCY = "residency"
    SERVER_UNREACHABLE = "server_unreachable"
    SCHEMA_VERSION = "schema_version"
    HYBRID = "hybrid"
    RIGHTS = "rights"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveRefusal:
    """One thing that stands against a move."""

    code: RefusalCode
    #: The tenant, server or move that it is about.
    subject: str
    detail: str

    def document(self) -> dict[str, Any]:
        """As the interface has it."""
        return {"code": str(self.code), "subject": self.subject, "detail": self.detail}


@dataclass(frozen=True, kw_only=True, slots=True)
class MovePlan:
    """What a move will do. Sizes are of the tenant's own rows, and None when not counted."""

    tenant: Tenant
    target: Placement
    tables: int
    rows: int | None
    bytes: int | None
    indexes: int
    constraints: int
    sequences: int
    estimate: MoveEstimate
    refusals: tuple[MoveRefusal, ...] = ()

    @property
    def is_possible(self) -> bool:
        """Whether nothing stands against it."""
        return not self.refusals

    def check(self) -> None:
        """Raise `MoveRefusedError` with everything that stands against it."""
        if self.refusals:
            reasons = "; ".join(item.detail for item in self.refusals)
            raise MoveRefusedError(f"tenant {self.tenant.tenant_id} cannot be moved: {reasons}")

    def document(self) -> dict[str, Any]:
        """As the interface has it."""
        source = self.tenant.placement
        return {
            "tenant_id": self.tenant.tenant_id,
            "source": None if source is None else place_document(source),
            "target": place_document(self.target),
            "possible": self.is_possible,
            "refused": [item.document() for item in self.refusals],
            "tables": self.tables,
            "rows": self.rows,
            "bytes": self.bytes,
            "indexes": self.indexes,
            "constraints": self.constraints,
            "sequences": self.sequences,
            "duration_s": self.estimate.duration_s,
            "pause_ms": self.estimate.pause_ms,
            "estimate": self.estimate.document(),
        }

    def forecast(self) -> dict[str, Any]:
        """What the report of the move keeps, to be held against what happens."""
        document = self.document()
        return {name: document[name] for name in ("rows", "bytes", "duration_s", "pause_ms")}


def place_document(placement: Placement) -> dict[str, Any]:
    """A placement as the interface has it: without names of objects."""
    return {
        "isolation_level": str(placement.level),
        "server": placement.server,
    }


def chosen_place(
    tenant: Tenant,
    target: MoveTarget,
    *,
    servers: dict[ServerName, Region | None],
    settings: Settings,
) -> Placement:
    """The placement that a wish comes to, with fresh names.

    The server stays when it suits the wish. Raises `ServerNotFoundError` when none does.
    """
    here = tenant.placement
    assert here is not None  # noqa: S101 - checked by who plans.
    level = target.level or here.level
    server = _chosen_server(here.server, target, servers)
    database, schema, role = shared_database(settings), APP_SCHEMA, ROWS_ROLE
    match level:
        case IsolationLevel.ROW:
            pass
        case IsolationLevel.SCHEMA:
            schema = SchemaName(opaque_name())
            role = RoleName(schema)
        case IsolationLevel.DATABASE:
            role = RoleName(opaque_name())
            database = DatabaseName(role)
        case _:
            assert_never(level)
    return Placement(
        level=level, server=server, database=database, schema=schema, role=role, epoch=here.epoch
    )


def _region(region: Region | None) -> str:
    return "no region" if region is None else f"region {region}"


def _chosen_server(
    here: ServerName, target: MoveTarget, servers: dict[ServerName, Region | None]
) -> ServerName:
    if target.server is not None:
        if target.server not in servers:
            known = ", ".join(sorted(servers))
            raise ServerNotFoundError(
                f"there is no server {target.server!r}; the servers are {known}"
            )
        if target.region is not None and servers[target.server] != target.region:
            raise ServerNotFoundError(
                f"server {target.server} is in {_region(servers[target.server])}, "
                f"not {target.region}"
            )
        return target.server
    if target.region is None or servers.get(here) == target.region:
        return here
    found = sorted(name for name, region in servers.items() if region == target.region)
    if not found:
        regions = ", ".join(sorted({str(region) for region in servers.values() if region}))
        raise ServerNotFoundError(
            f"no server is in region {target.region!r}; the regions are: {regions or 'none named'}"
        )
    return found[0]


def refusals_of(
    tenant: Tenant,
    place: Placement,
    *,
    region: Region | None,
    versions: tuple[int, int],
) -> Sequence[MoveRefusal]:
    """What stands against a move, as far as the catalog knows. `versions`: source and target."""
    here = tenant.placement
    assert here is not None  # noqa: S101 - checked by who plans.
    found = []

    def refuse(code: RefusalCode, subject: str, detail: str) -> None:
        found.append(MoveRefusal(code=code, subject=subject, detail=detail))

    if tenant.status is not TenantStatus.ACTIVE:
        refuse(RefusalCode.NOT_ACTIVE, tenant.tenant_id, f"the tenant is {tenant.status}")
    if here.sensitive_schema is not None:
        refuse(
            RefusalCode.HYBRID,
            tenant.tenant_id,
            "a hybrid tenant, whose tables are in two places, cannot be moved yet",
        )
    elif (here.level, here.server) == (place.level, place.server):
        detail = f"it is at level {here.level} on server {here.server} already"
        refuse(RefusalCode.ALREADY_THERE, tenant.tenant_id, detail)
    if tenant.region is not None and region != tenant.region:
        refuse(
            RefusalCode.RESIDENCY,
            str(place.server),
            f"its data has to be in region {tenant.region}, and server {place.server} is in "
            f"{region or 'none'}",
        )
    if versions[0] != versions[1]:
        refuse(
            RefusalCode.SCHEMA_VERSION,
            str(place.server),
            f"the tables there are at version {versions[1]} and the tenant's at {versions[0]}; "
            "finish the migration first (tenancy schema apply)",
        )
    return found


def unreachable(server: ServerName, error: TenancyError) -> MoveRefusal:
    """That the target's server does not answer."""
    detail = f"server {server} cannot be used now: {error.detail}"
    return MoveRefusal(code=RefusalCode.SERVER_UNREACHABLE, subject=str(server), detail=detail)


def lacks_rights(server: ServerName) -> MoveRefusal:
    """That the admin may not do there what a move does."""
    return MoveRefusal(
        code=RefusalCode.RIGHTS,
        subject=str(server),
        detail=f"the admin of server {server} may not keep triggers from firing; grant set on "
        "parameter session_replication_role to it",
    )
