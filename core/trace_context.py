"""Trace context as it crosses processes: the header `traceparent` (W3C Trace Context, level 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: Version, trace id, parent id, flags (W3C Trace Context, 3.2.2). A later version may have more
#: behind the flags.
_HEADER: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?"
)
_SAMPLED: Final = 0x01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in somebody's trace: what a span begun here is a child of."""

    trace_id: int
    span_id: int
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def of(cls, header: str | None) -> TraceContext | None:
        """What a header says; None for none, and for one that is malformed, which is ignored."""
        found = _HEADER.fullmatch(header.strip(" \t")) if header else None
        if found is None or found["version"] == "ff":
            return None
        if found["version"] == "00" and found["more"]:
            return None
        trace_id, span_id = int(found["trace"], 16), int(found["span"], 16)
        if not trace_id or not span_id:
            return None
        return cls(trace_id, span_id, bool(int(found["flags"], 16) & _SAMPLED))
