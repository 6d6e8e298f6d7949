"""Starting, finding and ending the one process that serves a state directory.

Rules this module keeps:

* A server's processes inherit a lock on `server.lock` and so hold it while any of them lives.
  Whether the directory is in use is the kernel's to say: a pid can be given out again, or belong to
  a process that cannot be seen from here, and a stale file says nothing.
* Starting and stopping happen under `transition.lock`: of two that start at once one starts the
  server and the other finds it.
* A server ends with its *owner*, the process that started it, even when that is killed, unless it
  was started *detached*. Who finds a server running only attaches to it and does not end it. A
  server whose owner is gone is ended in good order and started anew.
* What is started and does not come up, or is cancelled meanwhile, is ended again.
* Nothing is signalled that is not known to be of this server: a process either is the recorded
  one, start time included, or has this directory's lock file open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from signal import SIGKILL, Signals
from typing import IO, Protocol, cast

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.polling import in_thread, polled
from tenancy.data_isolation.engine.process_identity import ProcessIdentity, processes_locking
from tenancy.data_isolation.engine.server_tool import server_environment
from tenancy.data_isolation.engine.service_user import ServiceUser
from tenancy.data_isolation.engine.state_directory import (
    ServerRecord,
    StateDirectory,
    disk_full,
    file_errors,
)

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_PORT_ATTEMPTS = 5
_ANSWER_INTERVAL_S = 0.05
#: How long a server may take to end after each further signal, once it did not end in good order.
_FORCED_STOP_TIMEOUT_S = 10.0
_SIGNAL_INTERVAL_S = 1.0
#: How long the other processes of a server may take to notice that its main process is gone, or
#: that they are to end.
_LINGER_S = 1.0

# The server is no child of ours, so that it leaves no remains with us and can outlive us. The shell
# tells its pid and, unless the server is to stay, waits with it: the standard input of the shell is
# a pipe that ends when the owner does, however that happens, and then the server is told to stop,
# more than once, because at first it does not listen (the shell has it ignore SIGINT).
_LAUNCHER = """
mode=$1 signal=$2
shift 2
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >/dev/null
[ "$mode" = detached ] && exit 0
{ read -r line; while kill -s "$signal" "$server"; do sleep 1; done; } <&3 2>/dev/null &
wait "$server"
kill "$!" 2>/dev/null
exit 0
"""


class ServerState(StrEnum):
    """What a state directory's server is doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    #: The main process is gone or not known, and others of its processes still live.
    ORPHANED = "orphaned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How to start a server: its command, and where its unix socket will be, if it has one."""

    command: Sequence[str | Path]
    socket_directory: Path | None = None


class Program(Protocol):
    """What the supervision has to know of one kind of server.

    Every method is called by one task at a time, with the transition lock held (`answers` also
    without it), and may be cancelled. `prepare` must leave the data directory whole or absent
    wherever it is cut off, since the process may be killed in the middle of it.
    """

    #: What to call the server in messages.
    title: str
    #: The setting of its port.
    port_variable: str
    #: Signals that end it: in good order, and at once.
    graceful: Signals
    immediate: Signals

    async def prepare(self, user: ServiceUser | None) -> None:
        """Make the data directory ready, or raise `EmbeddedServerError`."""
        ...

    def launch(self, port: int, user: ServiceUser | None) -> Launch:
        """How to start it on that port. May write files (blocks)."""
        ...

    async def answers(self, record: ServerRecord) -> bool:
        """Whether it takes requests; `EmbeddedServerError` when it never will."""
        ...

    def explain(self, log: str) -> str | None:
        """Why it did not start, in a few words, as far as its log tells."""
        ...


class Supervisor:
    """Starts, finds and ends the server of one state directory. Belongs to one task at a time.

    `port` 0 stands for the port that the server had before, or any that is free.
    """

    def __init__(
        self,
        state: StateDirectory,
        program: Program,
        *,
        port: int,
        detached: bool,
        timeout_s: float,
        free_disk_min_bytes: int,
    ) -> None:
        self._state = state
        self._program = program
        self._port = port
        self._detached = detached
        self._timeout_s = timeout_s
        self._free_disk_min_bytes = free_disk_min_bytes
        self._owned: ServerRecord | None = None
        self._launcher: subprocess.Popen[bytes] | None = None

    async def start(self) -> ServerRecord:
        """Have the server running; its record. Raises `EmbeddedServerError`."""
        user = await in_thread(self._state.prepare)
        async with self._transition():
            record = await self._found()
            if record is None:
                free = self._free_disk_min_bytes
                await in_thread(self._state.check_free_space, free)
                await self._program.prepare(user)
                record = await self._started(user)
            return record

    async def stop(self) -> None:
        """End the server if it belongs to this object; else leave it alone."""
        if self._owned is None:
            return
        async with self._transition():
            if await in_thread(self._state.read_record) == self._owned:
                await self._end(self._owned)
        self._owned = None
        await self._reap_launcher()

    async def shut_down(self) -> bool:
        """End the server, whoever started it; whether there was one."""
        if not await in_thread(self._state.is_in_use):
            return False
        async with self._transition():
            await self._end(await in_thread(self._state.running_record))
        self._owned = None
        await self._reap_launcher()
        return True

    def state(self) -> ServerState:
        """What the server is doing, as far as its processes tell. Blocks for a moment."""
        if not self._state.is_in_use():
            return ServerState.STOPPED
        running = self._state.running_record() is not None
        return ServerState.RUNNING if running else ServerState.ORPHANED

    # Finding one that runs

    async def _found(self) -> ServerRecord | None:
        """The server that runs here and may be used; None when none does (any more)."""
        if not await in_thread(self._state.is_in_use):
            return None
        record = await in_thread(self._state.running_record)
        if record is None or not await in_thread(record.is_kept):
            _log.warning("%s: ending what is left of it in %s", self._title, self._state.path)
            await self._end(record)
            return None
        self._check_found(record)
        if not await self._until_it_answers(record):
            return None
        return record

    def _check_found(self, record: ServerRecord) -> None:
        """Raise `EmbeddedServerError` when the server that runs is not the one that is wanted."""
        where = f"{self._title} runs already in {self._state.path}"
        if self._port not in (0, record.port):
            raise EmbeddedServerError(
                f"{where} on port {record.port}, and {self._program.port_variable} asks for "
                f"{self._port}: stop it first (`tenancy down`), or do not set the port"
            )
        if self._detached and record.owner is not None:
            raise EmbeddedServerError(
                f"{where} and ends with the process {record.owner.pid}, which started it: end that "
                "process first, to have a server that stays"
            )

    async def _until_it_answers(self, record: ServerRecord) -> bool:
        """Wait for the server to answer; false when it ended meanwhile."""
        deadline = time.monotonic() + self._timeout_s
        while not await self._program.answers(record):
            if not await in_thread(record.process.is_alive):
                await self._end(None)
                return False
            if time.monotonic() >= deadline:
                raise EmbeddedServerError(
                    f"{self._title} (process {record.process.pid}, port {record.port}) runs, but "
                    f"did not answer for {self._timeout_s:g} s (TENANCY_SERVER_START_TIMEOUT_S); "
                    f"look into {self._state.newest_log()}"
                )
            await asyncio.sleep(_ANSWER_INTERVAL_S)
        return True

    # Starting one

    async def _started(self, user: ServiceUser | None) -> ServerRecord:
        """Start the server; on another port when the one that was free is taken meanwhile."""
        tried: set[int] = set()
        while True:
            port = await in_thread(self._free_port, tried)
            tried.add(port)
            try:
                return await self._started_on(port, user)
            except _PortTakenError:
                if self._port or len(tried) == _PORT_ATTEMPTS:
                    raise EmbeddedServerError(self._port_in_use(port)) from None

    def _free_port(self, tried: set[int]) -> int:
        if self._port:
            if not is_port_free(self._port):
                raise EmbeddedServerError(self._port_in_use(self._port))
            return self._port
        last = self._state.read_record()
        if last is not None and last.port not in tried and is_port_free(last.port):
            return last.port
        return free_port()

    def _port_in_use(self, port: int) -> str:
        return (
            f"{self._title} cannot use the port {LOOPBACK}:{port}, another program does: end that "
            f"program, or set {self._program.port_variable} to another port (0 = any free one)"
        )

    async def _started_on(self, port: int, user: ServiceUser | None) -> ServerRecord:
        await self._reap_launcher()
        launch = await in_thread(self._program.launch, port, user)
        record: ServerRecord | None = None
        try:
            record = await in_thread(self._spawn, launch, port, user)
            if not await self._until_it_answers(record):
                raise self._not_started(await in_thread(self._state.log_tail))
        except BaseException:
            # Also when cancelled: what nobody waits for any more must not be left half started.
            await self._end(record or await in_thread(self._state.running_record))
            await self._reap_launcher()
            raise
        if record.owner is None:
            await self._reap_launcher()
        else:
            self._owned = record
        return record

    def _spawn(self, launch: Launch, port: int, user: ServiceUser | None) -> ServerRecord:
        """Start the process and write down which it is."""
        state, lock = self._state, self._state.server
        with file_errors(state.path):
            if not lock.try_take():
                raise EmbeddedServerError(f"{state.path} is in use by another server")
            try:
                process = self._spawned(launch.command, lock.descriptor(), user)
            finally:
                # What was started holds it from here on, through the descriptor it inherited.
                lock.release()
        owner = None if self._detached else ProcessIdentity.of(os.getpid())
        record = ServerRecord(
            process=process, owner=owner, port=port, socket_directory=launch.socket_directory
        )
        state.write_record(record)
        return record

    def _spawned(
        self, command: Sequence[str | Path], lock: int, user: ServiceUser | None
    ) -> ProcessIdentity:
        self._state.mark_logs()
        mode = "detached" if self._detached else "owned"
        sign = self._program.graceful.name.removeprefix("SIG")
        with self._state.start_log.open("wb") as log:
            launcher = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "tenancy-server", mode, sign, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._state.data,
                env=server_environment(),
                umask=0o077,
                start_new_session=True,
                pass_fds=(lock,),
                **(user.spawn_arguments() if user else {}),
            )
        self._launcher = launcher
        with cast(IO[bytes], launcher.stdout) as told:
            line = told.readline().strip()
        process = ProcessIdentity.of(int(line)) if line.isdigit() else None
        if process is None:
            raise self._not_started(self._state.log_tail())
        return process

    def _not_started(self, log: str) -> Exception:
        """The error for a server that ended instead of starting."""
        if "No space left on device" in log or "Disk quota exceeded" in log:
            return EmbeddedServerError(
                f"{self._title} did not start: {disk_full(self._state.path)}"
            )
        if "Address already in use" in log:
            return _PortTakenError()
        reason = self._program.explain(log) or "it ended without a word"
        return EmbeddedServerError(
            f"{self._title} did not start: {reason} (log: {self._state.newest_log()})"
        )

    # Ending one

    async def _end(self, record: ServerRecord | None) -> None:
        """End the server in good order if its main process is known; then all that is left."""
        program = self._program
        if record is not None:
            for number, wait_s in (
                (program.graceful, self._timeout_s),
                (program.immediate, _FORCED_STOP_TIMEOUT_S),
            ):
                if await self._is_ended_by(number, record.process, wait_s):
                    return
        # Without their main process the others end by themselves, unless they are busy.
        if await self._is_unused_within(_LINGER_S):
            return
        for number in (program.immediate, SIGKILL):
            await in_thread(self._signal_all, number)
            if await self._is_unused_within(_LINGER_S):
                return
        raise EmbeddedServerError(
            f"{self._state.path} is in use by processes that this one may not end or cannot see "
            "(in another container?): end the server there first"
        )

    def _signal_all(self, number: Signals) -> None:
        for process in processes_locking(self._state.server.path):
            if process.pid != os.getpid():
                process.signal(number)

    async def _is_ended_by(
        self, number: Signals, process: ProcessIdentity, timeout_s: float
    ) -> bool:
        """Signal the main process until it is gone or the time is over; whether all are gone.

        More than once, because a server that was only just started does not listen yet.
        """
        deadline = time.monotonic() + timeout_s
        while await in_thread(process.is_alive) and time.monotonic() < deadline:
            await in_thread(process.signal, number)
            if await self._is_unused_within(_SIGNAL_INTERVAL_S, while_alive=process):
                return True
        return not await in_thread(self._state.is_in_use)

    async def _is_unused_within(
        self, timeout_s: float, while_alive: ProcessIdentity | None = None
    ) -> bool:
        """Wait until no process of the server lives, or its main one is gone and others stay."""

        def settled() -> bool:
            gone = while_alive is not None and not while_alive.is_alive()
            return gone or not self._state.is_in_use()

        await polled(settled, timeout_s)
        return not await in_thread(self._state.is_in_use)

    async def _reap_launcher(self) -> None:
        """Collect the shell that waited with a server which has ended or was detached."""
        launcher, self._launcher = self._launcher, None
        if launcher is None:
            return
        cast(IO[bytes], launcher.stdin).close()
        if not await polled(lambda: launcher.poll() is not None, _FORCED_STOP_TIMEOUT_S):
            launcher.kill()
            await in_thread(launcher.wait)

    # Both

    @property
    def _title(self) -> str:
        return self._program.title

    @asynccontextmanager
    async def _transition(self) -> AsyncIterator[None]:
        """Be the only one, of all processes, who starts or stops this server."""
        lock = self._state.transition
        try:
            with file_errors(lock.path):
                taken = await polled(lock.try_take, self._timeout_s)
            if not taken:
                raise EmbeddedServerError(
                    f"another process has been starting or stopping {self._title} in "
                    f"{self._state.path} for more than {self._timeout_s:g} s: look what it waits "
                    "for, or raise TENANCY_SERVER_START_TIMEOUT_S"
                )
            yield
        finally:
            lock.release()


class _PortTakenError(Exception):
    """The port was free when it was looked at, and taken when the server wanted it."""


def is_port_free(port: int) -> bool:
    """Whether a server could listen on that port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a server that just ended are not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
