"""Settings of moves in tests that are not about pace: as fast as it goes, in pieces of one size."""

from __future__ import annotations

from typing import Any, Final

FLAT_OUT: Final[dict[str, Any]] = {
    "move_chunk_factor": 1,
    "move_dip_percent": 100.0,
    "move_latency_factor": 1e6,
}
