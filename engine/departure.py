"""When the next session of a line goes to work with short statements, and with how many.

More sessions at work do not make short statements quicker, but each takes fewer along. So where
many come, few sessions are at work at a time, and the next one waits for a moment until it has
enough; where few come nobody waits. Sessions that are at work with what takes long hold nobody up.
"""

from __future__ import annotations

import os
from typing import Final

from tenancy.data_isolation.engine.long_statements import LongStatements
from tenancy.data_isolation.engine.session_line import Line

#: So many sessions a line opens as soon as it has work for them: enough to keep a server busy with
#: short statements. Further ones come only when waiting shows that these are held up.
EAGER_SESSIONS: Final = 4
#: How long a line waits before it asks for a session beyond those.
GROWTH_WAIT_S: Final = 0.02
#: Where there are so many requests, those at work included, the next session waits until so many
#: can go along, or for so long, and so many are at work at the same time.
_FEW: Final = 8
_CROWD: Final = 16
GATHER_S: Final = 0.005
_BUSY_MAX: Final = min(max(os.cpu_count() or 2, 2), EAGER_SESSIONS)
#: So many travel in one flight, however many sessions are free: a flight costs as much as some
#: statements, and while the answers of one lead to the next ones another is at work.
_TOGETHER: Final = 32


def may_depart(line: Line, long: LongStatements, now: float) -> bool:
    """Whether another session of the line shall go to work with short statements."""
    at_work = [size for session, size in line.short.items() if not long.counts(session)]
    if not at_work:
        return True
    if sum(at_work) + line.waiting < _FEW:
        return len(at_work) < EAGER_SESSIONS
    waited_s = now - line.since
    if len(at_work) < _BUSY_MAX:
        return line.waiting >= _CROWD or waited_s >= GATHER_S
    return waited_s >= GROWTH_WAIT_S


def share(line: Line, most: int) -> int:
    """How many of those who wait the next session takes along."""
    sessions = max(1, min(len(line.idle) + len(line.short), _BUSY_MAX))
    return min(max(-(-line.waiting // sessions), _TOGETHER), line.waiting, most)
