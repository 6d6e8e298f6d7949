"""Making tenants where the rules put them: one, or many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core import Tenant, TenantContext, TenantStatus
from tenancy.data_isolation.core.choice import Choice
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    OverloadedError,
    SetupError,
    TenancyError,
    TenantNotFoundError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.rules import LEVEL_OF_STRATEGY, StrategyName, placed_by
from tenancy.data_isolation.core.tenant_differences import differences, unlike
from tenancy.data_isolation.serve.services import Services
from tenancy.data_isolation.strategies.performance_optimized_strategy import ResultKeeping

#: Tenants of one batch that get logins, schemas or databases at the same time.
_SINGLY_AT_ONCE: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeTenant:
    """A tenant that was asked for, why it is where it is, and whether it was made now."""

    tenant: Tenant
    reasons: Sequence[str] = ()
    created: bool = True


class TenantCreation:
    """Makes tenants. Safe for concurrent use from one event loop."""

    def __init__(self, services: Services) -> None:
        self._gateway = services.gateway
        self._catalog = services.catalog
        self._orchestrator = services.orchestrator

    async def one(self, context: TenantContext, *, repeatable: bool) -> MadeTenant:
        """The tenant. A creation that was cut off is finished.

        One that is there raises `TenantExistsError`, unless it is `repeatable` and the same.
        """
        try:
            present = await self._catalog.tenant(TenantId(context.tenant_id))
        except TenantNotFoundError:
            present = None
        if present is not None and present.status is not TenantStatus.CREATING:
            names = await self._catalog.unlike_metadata([context])
            metadata = names.get(present.tenant_id, ())
            if not repeatable or differences(context, present, metadata):
                raise unlike(context, present, metadata)
        if present is None:
            # It need not be looked for once more.
            choice = await self._orchestrator.choose_for_new(context, "create_tenant")
        else:
            choice = await self._orchestrator.select_optimal_strategy(context, "create_tenant")
        return await self._placed(context, choice, present)

    async def many(self, contexts: Sequence[TenantContext]) -> list[MadeTenant | TenancyError]:
        """Each one, in their order, or why there is none. Repeated, it makes what is missing.

        Those that get level row are made together; the others take their time, some at once.
        """
        names = [TenantId(context.tenant_id) for context in contexts]
        present = await self._catalog.tenants_named(names)
        metadata = await self._unlike_metadata(
            [item for name, item in zip(names, contexts, strict=True) if name in present]
        )
        found: dict[int, MadeTenant | TenancyError] = {}
        rows: dict[int, StrategyName] = {}
        singly: list[int] = []
        seen: set[TenantId] = set()
        for position, (name, context) in enumerate(zip(names, contexts, strict=True)):
            if name in seen:
                found[position] = InvalidInputError(f"tenant {name} is there twice")
                continue
            seen.add(name)
            known = present.get(name)
            if known is not None and known.status is not TenantStatus.CREATING:
                found[position] = _as_it_is(context, known, metadata.get(name, ()))
                continue
            chosen = None
            if known is None:
                chosen = await self._chosen_for_rows(context, position, found)
            if chosen is not None:
                rows[position] = chosen
            elif position not in found:
                singly.append(position)
        await self._make_rows(contexts, rows, found)
        await self._make_singly(contexts, singly, found)
        return [found[position] for position in range(len(contexts))]

    async def _unlike_metadata(
        self, contexts: Sequence[TenantContext]
    ) -> dict[TenantId, Sequence[str] | TenancyError]:
        """As the catalog has it; of one whose metadata cannot be stored, why that is."""
        try:
            return {**await self._catalog.unlike_metadata(contexts)} if contexts else {}
        except TenancyError as error:
            if error.retryable or len(contexts) == 1:
                return dict.fromkeys((TenantId(item.tenant_id) for item in contexts), error)
        found: dict[TenantId, Sequence[str] | TenancyError] = {}
        for context in contexts:
            found |= await self._unlike_metadata([context])
        return found

    async def _chosen_for_rows(
        self,
        context: TenantContext,
        position: int,
        found: dict[int, MadeTenant | TenancyError],
    ) -> StrategyName | None:
        """The strategy of a new tenant that the rules put among the shared rows.

        None for one that they put elsewhere; a refusal goes to `found`.
        """
        try:
            choice = await self._orchestrator.choose_for_new(context, "create_tenant")
        except TenancyError as error:
            found[position] = error
            return None
        return choice.strategy if choice.placed_by is StrategyName.ROW_LEVEL else None

    async def _make_rows(
        self,
        contexts: Sequence[TenantContext],
        chosen: Mapping[int, StrategyName],
        found: dict[int, MadeTenant | TenancyError],
    ) -> None:
        if not chosen:
            return
        made = await self._gateway.create_row_tenants([contexts[place] for place in chosen])
        turns = asyncio.Semaphore(_SINGLY_AT_ONCE)

        async def note(position: int, outcome: Tenant | TenancyError) -> None:
            if isinstance(outcome, TenancyError):
                found[position] = outcome
                return
            try:
                async with turns:
                    tenant = await self._kept(outcome, chosen[position])
            except TenancyError as error:
                found[position] = error
            else:
                found[position] = MadeTenant(tenant=tenant)

        async with asyncio.TaskGroup() as group:
            for position, outcome in zip(chosen, made, strict=True):
                group.create_task(note(position, outcome))

    async def _make_singly(
        self,
        contexts: Sequence[TenantContext],
        positions: Sequence[int],
        found: dict[int, MadeTenant | TenancyError],
    ) -> None:
        turns = asyncio.Semaphore(_SINGLY_AT_ONCE)

        async def make(position: int) -> None:
            async with turns:
                try:
                    found[position] = await self.one(contexts[position], repeatable=True)
                except TenancyError as error:
                    found[position] = error

        async with asyncio.TaskGroup() as group:
            for position in positions:
                group.create_task(make(position))

    async def _placed(
        self, context: TenantContext, choice: Choice, present: Tenant | None
    ) -> MadeTenant:
        # Where a creation that was cut off has begun, it goes on.
        begun = present.placement if present is not None else None
        holder = placed_by(begun) if begun is not None else choice.placed_by
        tenant = await self._gateway.create_tenant(
            context, level=LEVEL_OF_STRATEGY[holder], hybrid=holder is StrategyName.HYBRID
        )
        tenant = await self._kept(tenant, choice.strategy)
        return MadeTenant(tenant=tenant, reasons=choice.reasons)

    async def _kept(self, tenant: Tenant, chosen: StrategyName) -> Tenant:
        """The tenant, with its results kept if that strategy was chosen for it."""
        if chosen is not StrategyName.PERFORMANCE_OPTIMIZED:
            return tenant
        keeping = self._gateway
        if isinstance(keeping, ResultKeeping):
            # While Redis does not answer it is noted only, and begins later.
            with suppress(UnavailableError, OverloadedError, SetupError):
                return await keeping.keep_results(tenant.tenant_id, True)
            return await self._gateway.tenant(tenant.tenant_id)
        return tenant


def _as_it_is(
    context: TenantContext, tenant: Tenant, metadata: Sequence[str] | TenancyError
) -> MadeTenant | TenancyError:
    """The tenant that there is, if it is what was asked for."""
    if isinstance(metadata, TenancyError):
        return metadata
    if differences(context, tenant, metadata):
        return unlike(context, tenant, metadata)
    return MadeTenant(tenant=tenant, created=False)
