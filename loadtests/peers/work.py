"""What every variant does: read one number by its key, for a tenant."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: The tenant of all operations when there is one alone.
LONE_TENANT = 7
#: Tenants whose operations are mixed, at level row and at level schema.
MIXED_ROW, MIXED_SCHEMA = 100, 20
#: Operations in one request of a batch.
BATCH = 50
#: Keys are drawn before the measurement, and used again in the same order.
_DRAWN = 20_000


class WrongAnswerError(Exception):
    """A variant gave another value than was stored: nothing that it measures is worth anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The operations of one cell: `tenants` of them take part, each has `rows` rows."""

    tenants: int
    rows: int

    def drawn(self, seed: int) -> list[tuple[int, int]]:
        """Pairs of a tenant and a key, each as likely as any other."""
        dice = random.Random(seed)
        return [(self._tenant(dice), dice.randint(1, self.rows)) for _ in range(_DRAWN)]

    def _tenant(self, dice: random.Random) -> int:
        return LONE_TENANT if self.tenants == 1 else dice.randint(1, self.tenants)


def stored(tenant: int, row: int) -> int:
    """The value that the tenant has under that key."""
    return tenant * 1_000 + row


def check(tenant: int, row: int, value: object) -> None:
    """Raise `WrongAnswerError` when the value is not what is stored."""
    if value != stored(tenant, row):
        raise WrongAnswerError(
            f"tenant {tenant}, key {row}: {value!r} instead of {stored(tenant, row)}"
        )
