"""Makes many tenants of level ROW at a time: a few round trips for each chunk of them.

Rules this module keeps:

* What comes of a tenant is what `Provisioner.create` would have made of it. A tenant of level ROW
  is a row in the catalog, a fence and its first rows, so that hundreds fit into one transaction.
* Repeated, it goes on where it stopped: those that are there already are returned as they are.
* One that cannot be made takes none of the others along: each has its own outcome. Only one that
  somebody else is working on for long holds up those of its transaction, which are told so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    OutcomeUnknownError,
    TenancyError,
    TenantExistsError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tenant_differences import unlike
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Tenant,
    TenantContext,
    TenantStatus,
)
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.provisioner import Provisioner, spread
from tenancy.data_isolation.engine.provisioning_errors import provisioning

_Outcomes = dict[TenantId, Tenant | TenancyError]


class RowTenants:
    """Many tenants at once. Safe for concurrent use by any number of processes."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        maker: PlacementMaker,
        provisioner: Provisioner,
    ) -> None:
        self._chunk = settings.provisioning_tenants_max
        self._catalog = catalog
        self._maker = maker
        self._provisioner = provisioner

    async def create(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """Each tenant, made, finished, or as it was there already; or why there is none.

        In the order of `contexts`. The errors are those of `Provisioner.create`, and
        `InvalidInputError` for one that wants another level or whose name has come before.
        """
        outcomes: list[Tenant | TenancyError | None] = [None] * len(contexts)
        where: dict[str | None, list[ServerName] | TenancyError] = {}
        names: dict[TenantId, int] = {}
        chosen: defaultdict[ServerName, list[TenantContext]] = defaultdict(list)
        for position, context in enumerate(contexts):
            name = TenantId(context.tenant_id)
            if context.region not in where:
                where[context.region] = await self._candidates(server, context.region)
            candidates = where[context.region]
            if name in names:
                outcomes[position] = InvalidInputError(f"tenant {name} is there twice")
            elif context.isolation_level not in (None, IsolationLevel.ROW):
                outcomes[position] = InvalidInputError(
                    f"tenant {name} wants level {context.isolation_level}; here all get level row"
                )
            elif isinstance(candidates, TenancyError):
                outcomes[position] = candidates
            else:
                names[name] = position
                chosen[spread(name, candidates)].append(context)
        for place, group in chosen.items():
            for start in range(0, len(group), self._chunk):
                chunk = group[start : start + self._chunk]
                for name, outcome in (await self._made(chunk, place)).items():
                    outcomes[names[name]] = outcome
        return [item if item is not None else TenancyError() for item in outcomes]

    async def _candidates(
        self, server: ServerName | None, region: str | None
    ) -> list[ServerName] | TenancyError:
        try:
            return await self._provisioner.candidates(server, region)
        except TenancyError as error:
            return error

    async def _made(self, contexts: Sequence[TenantContext], server: ServerName) -> _Outcomes:
        """The outcomes of one chunk."""
        try:
            return await self._together(contexts, server)
        except TenancyError as error:
            if error.retryable or isinstance(error, OutcomeUnknownError) or len(contexts) == 1:
                return dict.fromkeys((TenantId(item.tenant_id) for item in contexts), error)
        # One of them is at fault, and is found out so.
        found: _Outcomes = {}
        for context in contexts:
            try:
                found[TenantId(context.tenant_id)] = await self._provisioner.create(
                    context, level=IsolationLevel.ROW, server=server
                )
            except TenancyError as error:
                found[TenantId(context.tenant_id)] = error
        return found

    async def _together(self, contexts: Sequence[TenantContext], server: ServerName) -> _Outcomes:
        wanted = self._provisioner.first_placement(IsolationLevel.ROW, server)
        known = await self._catalog.add_row_tenants(contexts, wanted)
        found: _Outcomes = {}
        begun: list[Tenant] = []
        other = await self._others(contexts, known)
        for name, (tenant, _) in known.items():
            against = other.get(name) or _against(tenant, server)
            if against is not None:
                found[name] = against
            elif tenant.status is TenantStatus.CREATING:
                begun.append(tenant)
            else:
                found[name] = tenant
        if begun:
            found |= await self._finished(begun, server)
        for context in contexts:
            name = TenantId(context.tenant_id)
            found.setdefault(name, TenantSuspendedError(f"tenant {name} was erased meanwhile"))
        return found

    async def _others(
        self,
        contexts: Sequence[TenantContext],
        known: Mapping[TenantId, tuple[Tenant, bool]],
    ) -> dict[TenantId, TenantExistsError]:
        """Tenants that are there and are not what was asked for, and in what."""
        others = {
            name: context
            for context in contexts
            if (name := TenantId(context.tenant_id)) in known and not known[name][1]
        }
        if not others:
            return {}
        names = await self._catalog.unlike_metadata([*others.values()])
        return {
            name: unlike(context, known[name][0], names.get(name, ()))
            for name, context in others.items()
        }

    async def _finished(self, begun: Sequence[Tenant], server: ServerName) -> _Outcomes:
        """Tenants that are known to the catalog, made."""
        names = [tenant.tenant_id for tenant in begun]
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        with provisioning(f"{names[0]}{others}"):
            async with self._maker.locked_all(begun, server) as connection:
                # What others have done until the locks were had.
                now = await self._catalog.tenants_named(names)
                left = [
                    now[tenant.tenant_id] for tenant in begun if now.get(tenant.tenant_id) == tenant
                ]
                if left:
                    await self._maker.make_rows(connection, left)
                    await self._catalog.set_active([tenant.tenant_no for tenant in left])
        return {
            name: tenant
            if tenant.status is not TenantStatus.CREATING
            else TenantSuspendedError(f"tenant {name} was changed meanwhile; ask again")
            for name, tenant in (await self._catalog.tenants_named(names)).items()
        }


def _against(tenant: Tenant, server: ServerName) -> TenancyError | None:
    """Why a tenant that there is cannot be taken for the wanted one."""
    name, placement = tenant.tenant_id, tenant.placement
    if tenant.status is TenantStatus.DELETING:
        return TenantSuspendedError(f"tenant {name} is being deleted; wait for it")
    if placement is None:
        return TenantSuspendedError(f"tenant {name} has no place yet; make it by itself")
    hybrid = placement.sensitive_schema is not None
    if placement.level is not IsolationLevel.ROW or hybrid:
        return TenantExistsError(
            f"tenant {name} exists already at level {placement.level}"
            f"{', as a hybrid one' if hybrid else ''}"
        )
    if tenant.status is TenantStatus.CREATING and placement.server != server:
        return TenantSuspendedError(
            f"tenant {name} is being made on server {placement.server}; make it by itself"
        )
    return None
