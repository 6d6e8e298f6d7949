"""Less processor time for a server process, where the server runs on this machine.

PostgreSQL knows no shares of the processor, the kernel does (setpriority(2)). A process that was
made less important stays so: what may lower cannot always raise again. Therefore only processes of
strangers, and those whose session ends after the statement, are made less important.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from typing import Final

import psutil

#: About a tenth of the weight of a process that was left alone (sched(7)): still enough to let go
#: of what it holds.
_NICENESS: Final = 10
#: The server tells when a session began, the kernel when its process did.
_TOLERANCE_S: Final = 2.0


def make_less_important(pid: int, backend_start: datetime) -> bool:
    """Lower the priority of a server process; whether that was done.

    Only of a process of PostgreSQL on this machine that began when the session did: a server
    elsewhere has pids of its own.
    """
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        began_s = backend_start.timestamp()
        if (
            process.name().startswith("postgres")
            and abs(process.create_time() - began_s) <= _TOLERANCE_S
            and process.nice() < _NICENESS
        ):
            os.setpriority(os.PRIO_PROCESS, pid, _NICENESS)
            return True
    return False
