"""Results in memory: what fits, and what goes when more comes. No I/O, no clock of its own.

Bounded three times: bytes in all, bytes of one tenant, age. What was used least lately goes first;
hot tenants, who were given the most lately or are pinned, are passed over as long as others have
something.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

#: What an entry takes beside its result, roughly.
_ENTRY_BYTES: Final = 400
#: How many entries are looked at for one that belongs to no hot tenant.
_SEARCH_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A result as it is kept: packed, with the counts of writes that it was read under."""

    counts: tuple[int, ...]
    packed: bytes
    until_s: float


class KeptResults:
    """Results by tenant and digest."""

    def __init__(self, *, bytes_max: int, tenant_bytes_max: int, hot_hits_min: int) -> None:
        """`hot_hits_min` is how many results a tenant was given lately to count as hot."""
        self._bytes_max = bytes_max
        self._tenant_bytes_max = min(tenant_bytes_max, bytes_max)
        self._hot_hits_min = hot_hits_min
        self._entries: OrderedDict[tuple[int, bytes], KeptResult] = OrderedDict()
        self._tenants: dict[int, OrderedDict[bytes, int]] = {}
        self._tenant_bytes: dict[int, int] = {}
        self._hits: dict[int, int] = {}
        #: Tenants that count as hot however little they were given.
        self.pinned: Container[int] = frozenset()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tenant_no: int, digest: bytes, now_s: float) -> KeptResult | None:
        """The result, unless it is too old."""
        found = self._entries.get((tenant_no, digest))
        if found is not None and found.until_s <= now_s:
            self.drop(tenant_no, digest)
            return None
        return found

    def used(self, tenant_no: int, digest: bytes) -> None:
        """A result was given to somebody."""
        self._entries.move_to_end((tenant_no, digest))
        self._tenants[tenant_no].move_to_end(digest)
        self._hits[tenant_no] = self._hits.get(tenant_no, 0) + 1

    def put(self, tenant_no: int, digest: bytes, result: KeptResult) -> bool:
        """Keep a result in place of the one before; whether there is room for it."""
        size = _ENTRY_BYTES + len(result.packed) + 8 * len(result.counts)
        self.drop(tenant_no, digest)
        if size > self._tenant_bytes_max:
            return False
        own = self._tenants.setdefault(tenant_no, OrderedDict())
        while own and self._tenant_bytes[tenant_no] + size > self._tenant_bytes_max:
            self._evict(tenant_no, next(iter(own)))
        while self._entries and self.bytes + size > self._bytes_max:
            self._evict(*self._victim())
        self._entries[tenant_no, digest] = result
        self._tenants.setdefault(tenant_no, OrderedDict())[digest] = size
        self._tenant_bytes[tenant_no] = self._tenant_bytes.get(tenant_no, 0) + size
        self.bytes += size
        return True

    def drop(self, tenant_no: int, digest: bytes) -> None:
        """Forget a result."""
        if self._entries.pop((tenant_no, digest), None) is None:
            return
        own = self._tenants[tenant_no]
        size = own.pop(digest)
        self.bytes -= size
        self._tenant_bytes[tenant_no] -= size
        if not own:
            del self._tenants[tenant_no], self._tenant_bytes[tenant_no]

    def forget_tenant(self, tenant_no: int) -> None:
        """Forget all results of a tenant."""
        for digest in list(self._tenants.get(tenant_no, ())):
            self.drop(tenant_no, digest)
        self._hits.pop(tenant_no, None)

    def tenant_bytes(self, tenant_no: int) -> int:
        """Bytes that a tenant's results take."""
        return self._tenant_bytes.get(tenant_no, 0)

    def cool_down(self) -> None:
        """Let hits count for half: what was hot is so only as long as it goes on."""
        self._hits = {number: hits // 2 for number, hits in self._hits.items() if hits > 1}

    def hot(self) -> frozenset[int]:
        """The tenants whose results are pinned now."""
        return frozenset(number for number in self._hits if self._is_hot(number))

    def _is_hot(self, tenant_no: int) -> bool:
        return tenant_no in self.pinned or self._hits.get(tenant_no, 0) >= self._hot_hits_min

    def _victim(self) -> tuple[int, bytes]:
        """The result that was used least lately, those of hot tenants passed over once."""
        for _ in range(min(_SEARCH_MAX, len(self._entries))):
            key = next(iter(self._entries))
            if not self._is_hot(key[0]):
                return key
            self._entries.move_to_end(key)
        return next(iter(self._entries))

    def _evict(self, tenant_no: int, digest: bytes) -> None:
        self.evicted += 1
        self.drop(tenant_no, digest)
