"""The buckets that latencies are counted in: a sketch of them that can be added to others.

A bucket is a twelfth of a doubling wide (as in DDSketch, Masson, Rim and Lee, VLDB 2019, with
gamma = 2^(1/12)), so that a quantile is right within 3 %, the number of buckets is bounded, and
counts of several processes and times are added bucket by bucket. Bucket `n` begins at 2^(n/12) µs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

BUCKETS_PER_DOUBLING: Final = 12
SMALLEST_S: Final = 1e-6
#: Up to a good hour; what takes longer counts as that.
BUCKETS: Final = 32 * BUCKETS_PER_DOUBLING


def bucket_of(duration_s: float) -> int:
    """The bucket that a latency is counted in."""
    if duration_s <= SMALLEST_S:
        return 0
    doublings = math.log2(duration_s / SMALLEST_S)
    return min(int(doublings * BUCKETS_PER_DOUBLING), BUCKETS - 1)


def middle_s(bucket: int) -> float:
    """The latency that stands for all in a bucket: at most 3 % from any of them."""
    return SMALLEST_S * math.exp2((bucket + 0.5) / BUCKETS_PER_DOUBLING)


def quantile_s(counts: Mapping[int, int], share: float) -> float | None:
    """The latency that this share (0 to 1) of what was counted stayed within; None for nothing."""
    total = sum(counts.values())
    if not total:
        return None
    wanted = max(1, math.ceil(share * total))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            return middle_s(bucket)
    return None
