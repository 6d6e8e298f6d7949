"""Where the runtime keeps what it knows of itself, and what can be told of it from outside.

::

    <TENANCY_HOME>/admin.key            the administrator's API key (0600)
    <TENANCY_HOME>/run/state.json       what runs and how to reach it (0600, replaced whole)
    <TENANCY_HOME>/run/daemon.lock      held by the daemon while it lives
    <TENANCY_HOME>/run/processes/       working directory of the daemon and of all it starts
    <TENANCY_HOME>/log/                 what they say
    /tmp/tn-<hash of home>-<random>/    sockets, whose paths must be short, and Ray's own files

Rules this module keeps:

* Whether the daemon lives is the kernel's to say (the lock), never a file's.
* A process is ours when its working directory is ours and it is of the session that the daemon
  began; nothing is ever ended by its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGKILL, SIGTERM

from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.process_identity import (
    ProcessIdentity,
    processes_inside,
    processes_locking,
)
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file
from tenancy.data_isolation.serve.endpoint import Endpoint

#: Exit status of a daemon that found the lock taken.
STATUS_OTHER = 75

_SHORT_ROOT = Path("/tmp")  # noqa: S108 - only directories of a random name are made in it
_HASH_CHARACTERS = 8
_END_INTERVAL_S = 0.05


class Phase(StrEnum):
    """What the runtime is doing."""

    STARTING = "starting"
    RUNNING = "running"
    #: It runs, and something that it needs does not answer.
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeState:
    """What `state.json` says. It holds passwords, like the file."""

    state: Phase
    #: What is being done, or what is the matter; for people.
    detail: str = ""
    #: Why the last start came to nothing.
    error: str | None = None
    url: str | None = None
    #: Where this machine reaches what is at `url`, and what signs the certificate there.
    local_url: str | None = None
    tls_ca_file: str | None = None
    admin_key_file: str | None = None
    postgres_dsn: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    ray_address: str | None = None
    ray_auth_token_file: str | None = None
    home: str | None = None
    log_directory: str | None = None
    version: str | None = None
    started_at: str | None = None
    daemon: ProcessIdentity | None = None

    def endpoint(self) -> Endpoint:
        """The HTTP endpoint of a runtime that runs."""
        if self.url is None:
            raise RuntimeError("a runtime that does not run has no endpoint")
        return Endpoint(
            url=self.url, local_url=self.local_url or self.url, ca_file=self.tls_ca_file
        )

    def to_json(self) -> str:
        """The state as the text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RuntimeState | None:
        """The state in `text`; None when there is none, or another version's."""
        try:
            fields = json.loads(text)
            fields["state"] = Phase(fields["state"])
            if fields["daemon"] is not None:
                fields["daemon"] = ProcessIdentity(**fields["daemon"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError):
            return None


class RuntimeDirectory:
    """The runtime's part of `TENANCY_HOME`. Methods block for as long as small files take.

    They raise `EmbeddedServerError` when the directory cannot be used.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run = home / "run"
        self.work = self.run / "processes"
        self.log = home / "log"
        self.admin_key = home / "admin.key"
        self.ray_token = home / "secrets" / "ray_token"
        self.lock = FileLock(self.run / "daemon.lock")
        self._state = self.run / "state.json"

    def prepare(self) -> None:
        """Make what is missing, for this user alone."""
        with file_errors(self.home):
            for path in (self.home, self.run, self.work, self.log, self.ray_token.parent):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, state: RuntimeState) -> None:
        """Replace the state."""
        with file_errors(self._state):
            replace_file(self._state, state.to_json().encode())

    def read(self) -> RuntimeState | None:
        """What was written last, true or not."""
        try:
            return RuntimeState.from_json(self._state.read_text())
        except OSError:
            return None

    def forget(self) -> None:
        """Remove the state."""
        with file_errors(self._state):
            self._state.unlink(missing_ok=True)

    def is_alive(self) -> bool:
        """Whether a daemon lives."""
        return self.run.is_dir() and self.lock.is_taken()

    def daemon(self) -> ProcessIdentity | None:
        """The daemon that lives, when it can be seen from here."""
        if not self.is_alive():
            return None
        return next(iter(processes_locking(self.lock.path)), None)

    def present(self) -> RuntimeState:
        """What is true now, as far as files and the kernel can tell."""
        written = self.read()
        if self.is_alive():
            if written is None or written.state is Phase.STOPPED:
                return RuntimeState(state=Phase.STARTING, home=str(self.home))
            return written
        return RuntimeState(
            state=Phase.STOPPED,
            home=str(self.home),
            log_directory=str(self.log),
            admin_key_file=str(self.admin_key) if self.admin_key.exists() else None,
            error=None if written is None else written.error,
        )

    def short_directory(self) -> Path:
        """A fresh directory whose path is short enough for unix sockets. Removes older ones."""
        self.remove_short_directories()
        with file_errors(_SHORT_ROOT):
            return Path(tempfile.mkdtemp(prefix=self._short_prefix(), dir=_SHORT_ROOT))

    def remove_short_directories(self) -> None:
        """Remove those of runtimes that have ended."""
        for path in _SHORT_ROOT.glob(f"{self._short_prefix()}*"):
            found = path.lstat()
            # Anyone can make a name in /tmp; what is not ours is left alone.
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)

    def leftovers(self) -> list[ProcessIdentity]:
        """Processes of a daemon that has ended. The caller holds the lock, or it is free."""
        if not self.work.is_dir():
            return []
        written = self.read()
        session = written.daemon.pid if written is not None and written.daemon else None
        found = [item for item in processes_inside(self.work) if item.pid != os.getpid()]
        return [item for item in found if session is None or _session(item.pid) == session]

    def end_leftovers(self, timeout_s: float) -> list[ProcessIdentity]:
        """End them, in peace and then by force; those that would not end. Blocks."""
        for number in (SIGTERM, SIGKILL):
            for process in self.leftovers():
                process.signal(number)
            deadline = time.monotonic() + timeout_s
            while self.leftovers() and time.monotonic() < deadline:
                # Nothing tells when a process that is no child of ours has ended.
                time.sleep(_END_INTERVAL_S)
            if not self.leftovers():
                return []
        return self.leftovers()

    def _short_prefix(self) -> str:
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()
        return f"tn-{digest[:_HASH_CHARACTERS]}-"


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
