"""The command `tenancy` as a process: Ctrl-C ends it with one line, whenever it comes.

Importing what a command needs takes most of a second, in which KeyboardInterrupt would come out of
the middle of somebody else's module. So until the command begins, and once it has ended, the signal
is answered without Python's own means.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

#: As in `terminal`, which is one of the modules that must not be imported yet.
_STATUS_INTERRUPTED = 130
_STANDARD_ERROR = 2


def main() -> None:
    """Run the command; the process ends with its exit status."""
    # Whoever starts us in the background has the signal ignored, and keeps it so.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _end)
    from tenancy.data_isolation.serve.cli import run

    status = 0
    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = run(sys.argv[1:])
        sys.stdout.flush()
        if is_ours:
            signal.signal(signal.SIGINT, _end)
    except KeyboardInterrupt:
        _end()
    except BrokenPipeError:
        # Nobody reads the result any more; at its end Python would try once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


def _end(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """Leave at once: there is nothing yet, or nothing any more, that has to be put in order."""
    os.write(_STANDARD_ERROR, b"error: interrupted\n")
    os._exit(_STATUS_INTERRUPTED)
