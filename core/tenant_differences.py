"""In what a tenant that there is differs from one that was asked for.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tenancy.data_isolation.core.errors import TenantExistsError
from tenancy.data_isolation.core.types import Tenant, TenantContext

#: Names of metadata that are told, and characters of each.
_NAMES_MAX: Final = 5
_NAME_CHARACTERS_MAX: Final = 40


def differences(context: TenantContext, tenant: Tenant, metadata: Sequence[str]) -> list[str]:
    """What was asked for and is otherwise, one text each; none = the tenant is the same.

    `metadata` are the names in it that have other values. A level that was not asked for may be
    any.
    """
    return list(_differences(context, tenant, metadata))


def unlike(context: TenantContext, tenant: Tenant, metadata: Sequence[str]) -> TenantExistsError:
    """The error for a tenant that is there and is not the one that was asked for."""
    found = differences(context, tenant, metadata)
    if not found:
        return TenantExistsError(
            f"tenant {tenant.tenant_id} exists already, just as it was asked for"
        )
    return TenantExistsError(
        f"tenant {tenant.tenant_id} exists already, and is not as it was asked for: "
        f"{'; '.join(found)}; use another id"
    )


def _differences(context: TenantContext, tenant: Tenant, metadata: Sequence[str]) -> Iterator[str]:
    if context.tenant_type is not tenant.tenant_type:
        yield f"tenant_type is {tenant.tenant_type}, not {context.tenant_type}"
    level = tenant.placement.level if tenant.placement else None
    if context.isolation_level is not None and context.isolation_level is not level:
        yield f"isolation_level is {level or 'none yet'}, not {context.isolation_level}"
    if context.region != tenant.region:
        yield f"region is {tenant.region or 'none'}, not {context.region or 'none'}"
    if tuple(context.compliance) != tenant.compliance:
        yield f"compliance is {_words(tenant.compliance)}, not {_words(context.compliance)}"
    if metadata:
        names = [_short(name) for name in metadata[:_NAMES_MAX]]
        left = len(metadata) - len(names)
        yield f"metadata differs in {', '.join(names)}{f' and {left} more' if left else ''}"


def _words(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _short(name: str) -> str:
    shown = name if len(name) <= _NAME_CHARACTERS_MAX else f"{name[:_NAME_CHARACTERS_MAX]}…"
    return repr(shown)
