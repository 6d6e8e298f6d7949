"""Words of a move for whoever reads them on a terminal. Pure."""

from __future__ import annotations

from typing import Any


def next_step(found: dict[str, Any]) -> str | None:
    """What to do next; None when there is nothing to do."""
    move_id = found["move_id"]
    match found["phase"]:
        case "settled":
            return None
        case "open":
            return f"tenancy move confirm {move_id}, or tenancy move rollback {move_id}"
        case "paused":
            return f"tenancy move resume {move_id}, or tenancy move cancel {move_id}"
        case _:
            return f"tenancy move show {move_id}"


def standing(found: dict[str, Any]) -> str:
    """Which move it is, and where it stands."""
    phase = found["phase"]
    if phase in ("open", "paused", "settled"):
        return f"move {found['move_id']} is {phase}"
    return f"move {found['move_id']} goes on ({words(phase)})"


def words(phase: str) -> str:
    """A phase or a state."""
    return phase.replace("_", " ")


def place_words(place: dict[str, Any]) -> str:
    """Where a tenant is."""
    return f"{place['isolation_level']} on {place['server']}"


def at_words(found: dict[str, Any]) -> str:
    """Where the tenant works now."""
    match found["state"]:
        case "open" | "confirmed":
            return place_words(found["target"])
        case "cutting_over":
            return "held for a moment"
        case _:
            return place_words(found["source"])


def backlog_words(how: dict[str, Any]) -> str | None:
    """How much of what was changed is still to be copied; None when nothing is known to be."""
    count = how["backlog_rows"]
    return f"{count:,} changed row{'' if count == 1 else 's'}" if count else None


def time_left(how: dict[str, Any]) -> str | None:
    """How long it still takes to copy; None when it is done, and when nothing is known."""
    # What is said after a few rows says nothing.
    if not how["remaining_s"] or how["rows_copied"] * 50 < how["rows_total"]:
        return None
    return f"about {seconds_words(how['remaining_s'])}"


def rate_words(how: dict[str, Any]) -> str:
    """How fast the rows were copied."""
    return f"{how['rows_copied'] / max(how['copy_s'], 1e-3):,.0f} rows/s"


def bytes_words(count: int) -> str:
    """A size, short."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.3g} {unit}"
        size /= 1_000
    return f"{size:.3g} TB"


def seconds_words(duration_s: float) -> str:
    """A duration, short."""
    if duration_s < 120:
        return f"{duration_s:.3g} s"
    minutes = round(duration_s / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.3g} h"
