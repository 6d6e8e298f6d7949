"""What keeping results came to in a process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStatistics:
    """Counts since the process started."""

    #: Results given from memory, from Redis, and by waiting for another reader of the same.
    hits_memory: int = 0
    hits_shared: int = 0
    joined: int = 0
    #: Reads that PostgreSQL answered: nothing was kept; what was kept was out of date, so that it
    #: was not given; a write was under way.
    misses: int = 0
    stale_avoided: int = 0
    under_way: int = 0
    #: Reads that were not looked for: not repeatable, too cheap, or nothing may be kept now.
    bypassed: int = 0
    #: Reads and writes for which Redis did not answer.
    unanswered: int = 0
    #: Results that were kept, and those that were too large.
    kept: int = 0
    #: Reads of pinned tenants that were made ahead, so that their results are there.
    filled_ahead: int = 0
    too_large: int = 0
    #: Writes that were announced, and those of unknown outcome.
    announced: int = 0
    unknown: int = 0
