"""Settings of moves that are not about pace: they copy as fast as they can, in pieces of one size."""

from __future__ import annotations

from typing import Any, Final

FLAT_OUT: Final[dict[str, Any]] = {
    "move_chunk_factor": 1,
    "move_dip_percent": 100.0,
    "move_latency_factor": 1e6,
}
