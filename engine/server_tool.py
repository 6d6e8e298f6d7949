"""Running a program that comes with a server, such as the one that makes its data directory.

Rules this module keeps:

* the program holds the server's lock while it or a child of it lives, so that nobody starts a
  server, or the same program again, next to it;
* it is killed when its time is over or when nobody waits for it any more;
* it gets no more of our environment than it needs, and so none of our secrets.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.polling import in_thread, polled
from tenancy.data_isolation.engine.service_user import ServiceUser
from tenancy.data_isolation.engine.state_directory import StateDirectory, file_errors

_CHILDREN_TIMEOUT_S = 10.0


async def run_tool(
    command: Sequence[str | Path],
    *,
    state: StateDirectory,
    user: ServiceUser | None,
    timeout_s: float,
) -> tuple[int, str]:
    """Run the program to its end; its exit code and what it said.

    Raises `EmbeddedServerError` when it takes too long or cannot be run at all.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        await in_thread(lambda: started.append(_spawned(command, state, user)))
        process = started[0]
        if not await polled(lambda: process.poll() is not None, timeout_s):
            raise EmbeddedServerError(
                f"{command[0]} did not come to an end within {timeout_s:g} s "
                "(TENANCY_SERVER_START_TIMEOUT_S)"
            )
        return process.returncode, await in_thread(state.start_log.read_text, errors="replace")
    finally:
        for process in started:
            process.kill()
            await in_thread(process.wait)
            # Its children notice that it is gone; who continues must not find them at work.
            await polled(lambda: not state.server.is_taken(), _CHILDREN_TIMEOUT_S)


def server_environment() -> dict[str, str]:
    """The environment of a server and its programs: what they need to run, in plain English."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _spawned(
    command: Sequence[str | Path], state: StateDirectory, user: ServiceUser | None
) -> subprocess.Popen[bytes]:
    with file_errors(Path(command[0])), state.start_log.open("wb") as log:
        if not state.server.try_take():
            raise EmbeddedServerError(f"{state.path} is in use by another server")
        try:
            return subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=state.path,
                env=server_environment(),
                umask=0o077,
                start_new_session=True,
                pass_fds=(state.server.descriptor(),),
                **(user.spawn_arguments() if user else {}),
            )
        finally:
            # The program holds it from here on, through the descriptor it inherited.
            state.server.release()
