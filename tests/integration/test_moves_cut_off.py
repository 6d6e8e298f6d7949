"""Movers that lose a request, or its answer, on the way to a server: what was done is looked up.

`make soak` loses every request of a move in every way.
"""

from __future__ import annotations

import pytest
from support.cut_moves import staged, tried_out
from support.faulty_line import Loss
from support.two_servers import TwoServers

#: At these points what was asked for may be done, and everything depends on whether it was.
DECISIVE = ("commit the last rows", "close the source", "flip", "open the target", "flip at once")
CUT = [(point, loss) for point in DECISIVE for loss in (Loss.REQUEST, Loss.ANSWER)]
#: What a server still has of a session that nobody hears of any more, and what others need of it.
SILENT = [
    ("make the move's schema", Loss.ANSWER_SILENTLY),
    ("lock a table", Loss.ANSWER_SILENTLY),
    ("write a chunk", Loss.REQUEST_SILENTLY),
    ("hold the tenant", Loss.ANSWER_SILENTLY),
    ("close the source", Loss.ANSWER_SILENTLY),
    ("flip", Loss.REQUEST_SILENTLY),
    ("flip", Loss.ANSWER_SILENTLY),
    ("open the target", Loss.REQUEST_SILENTLY),
    ("flip at once", Loss.ANSWER_SILENTLY),
    ("take the source away", Loss.REQUEST_SILENTLY),
]


@pytest.mark.timeout(180)
async def test_a_line_that_is_cut_loses_no_row_and_leaves_nobody_closed(two_servers: TwoServers):
    async with staged(two_servers) as stage:
        await tried_out(stage, CUT)


@pytest.mark.timeout(180)
async def test_a_line_on_which_nothing_passes_is_given_up_in_time(two_servers: TwoServers):
    async with staged(two_servers) as stage:
        await tried_out(stage, SILENT)
