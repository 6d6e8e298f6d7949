"""What tenants ask for that may move before long, so that it can be prepared where they will be.

For `warming`, which takes it when the tenant is about to move.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.engine.statement import Statement

#: Statements of a tenant that are remembered, and tenants of which some are.
_TEXTS_MAX: Final = 32
_TENANTS_MAX: Final = 1_000
#: Longest text among them.
_TEXT_CHARS_MAX: Final = 4_000


class Overheard:
    """The latest statements of some tenants. Bounded. Belongs to one event loop."""

    def __init__(self) -> None:
        self._heard: OrderedDict[TenantNo, OrderedDict[str, None]] = OrderedDict()

    def hear(self, tenant_no: TenantNo, statement: Statement) -> None:
        """A tenant asks for this."""
        # To plan others could call functions of users, or take long.
        if not statement.plain or len(statement.text) > _TEXT_CHARS_MAX:
            return
        texts = self._heard.setdefault(tenant_no, OrderedDict())
        texts[statement.text] = None
        texts.move_to_end(statement.text)
        if len(texts) > _TEXTS_MAX:
            texts.popitem(last=False)
        if len(self._heard) > _TENANTS_MAX:
            self._heard.popitem(last=False)

    def take(self, tenant_no: TenantNo) -> list[str]:
        """The texts that the tenant has asked for, which are forgotten."""
        return list(self._heard.pop(tenant_no, ()))
