"""Python's cyclic garbage collector, set for a process that has many operations in flight.

Every operation in flight is a handful of containers, which the collector looks at again and again
while nearly all of them are freed by their reference counts anyway. Measured with 512 operations in
flight, client and actor in one process: 34 µs of processor time for an operation with Python's own
thresholds and pauses of 45 to 105 ms, 20 µs and pauses of some milliseconds with these.
"""

from __future__ import annotations

import gc

#: Net new containers before a collection of the youngest generation; Python's own value is 700.
_YOUNGEST = 10_000
_OLDER = 20


def relax_collector() -> None:
    """Collect rarely, and never look again at what exists now. For a process that is all ours.

    Call it when the modules are loaded. Memory in cycles lives a little longer; nothing leaks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNGEST, _OLDER, _OLDER)
