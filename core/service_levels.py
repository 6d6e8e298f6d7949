"""Service level targets: which there are, and how what was measured compares with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.performance import Performance


class ServiceLevel(StrEnum):
    """What can be promised."""

    #: The latency that 95 of 100 operations stay within.
    LATENCY_MS = "latency_ms"
    #: Operations per second that can be served.
    THROUGHPUT_OPS_SEC = "throughput_ops_sec"
    #: Operations of 100 that find everything below them answering.
    AVAILABILITY_PERCENTAGE = "availability_percentage"
    #: The share of operations (0 to 1) that fail for a reason that is not the caller's.
    ERROR_RATE = "error_rate"


_UPPER_BOUNDS = {
    ServiceLevel.AVAILABILITY_PERCENTAGE: 100.0,
    ServiceLevel.ERROR_RATE: 1.0,
}


def checked_targets(targets: Mapping[str, float], option: str) -> dict[str, float]:
    """The targets, when each is known and possible; `SettingError` otherwise."""
    known = ", ".join(ServiceLevel)
    for name, value in targets.items():
        if name not in list(ServiceLevel):
            raise SettingError(f"{option}: {name!r} is not a target; there are {known}")
        highest = _UPPER_BOUNDS.get(ServiceLevel(name), math.inf)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= highest or math.isinf(value):
            bound = "" if math.isinf(highest) else f" to {highest:g}"
            raise SettingError(f"{option}: {name} is {value!r}; a number from 0{bound} is needed")
    return dict(targets)


def compare(
    targets: Mapping[str, float], measured: Performance, throughput_ops_s: float | None
) -> dict[str, dict[str, Any]]:
    """For each target: target, measured, met (None = cannot be told) and what was measured."""
    return {name: _verdict(name, targets[name], measured, throughput_ops_s) for name in targets}


def _verdict(
    name: str, target: float, measured: Performance, throughput_ops_s: float | None
) -> dict[str, Any]:
    match ServiceLevel(name):
        case ServiceLevel.LATENCY_MS:
            value, what = measured.percentile_ms(0.95), "95th percentile of isolate_data"
            met = None if value is None else value <= target
        case ServiceLevel.THROUGHPUT_OPS_SEC:
            value, what = throughput_ops_s, "operations per second, best interval"
            met = None if value is None else value >= target
            if met is False and not measured.waited:
                # Nobody had to wait, so more could have been served than was asked for.
                met, what = None, f"{what}; fewer were asked for than the target"
        case ServiceLevel.AVAILABILITY_PERCENTAGE:
            value, what = measured.availability_percentage(), "share of operations, in percent"
            met = None if value is None else value >= target
        case ServiceLevel.ERROR_RATE:
            value, what = measured.error_rate(), "share of operations, 0 to 1"
            met = None if value is None else value <= target
    return {"target": target, "measured": value, "met": met, "measure": what}
