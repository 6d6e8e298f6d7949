"""By what the busiest tenants and kinds of statement are found."""

from __future__ import annotations

from enum import StrEnum


class Measure(StrEnum):
    """What is compared. `LATENCY` is the mean; the others are sums."""

    BUSY = "busy"
    OPERATIONS = "operations"
    LATENCY = "latency"
    QUEUE = "queue"
    ROWS = "rows"
    BYTES = "bytes"
    CPU = "cpu"
    ERRORS = "errors"
    HITS = "hits"
