"""The directory under `TENANCY_HOME` that holds all of one embedded server.

::

    data/             the server's own files
    log/              its log files, the oldest of which are removed
    socket/           its unix socket, where the path is short enough for one
    server.json       the process last started here, and how to reach it
    server.lock       held by the server's processes while one of them lives
    transition.lock   held by who is starting or stopping the server
    start.log         what the server said on its standard error since it was started

Rules this module keeps: only the owner and the user that the server runs as can enter; a file is
replaced as a whole or not at all; an `OSError` leaves here as an `EmbeddedServerError` that names
the path and says what to do. Everything here blocks for as long as small files take.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.process_identity import ProcessIdentity
from tenancy.data_isolation.engine.service_user import ServiceUser, service_user

_LOG_TAIL_BYTES = 64 * 1024
_FULL_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerRecord:
    """A server process that was started, as it is written down in `server.json`.

    `owner` is the process that the server ends with; None when the server was started to stay.
    """

    process: ProcessIdentity
    owner: ProcessIdentity | None
    port: int
    socket_directory: Path | None

    def is_kept(self) -> bool:
        """Whether the server is to live on: its owner still does, or it has none."""
        return self.owner is None or self.owner.is_alive()

    def to_json(self) -> str:
        """The record as the text of the file."""
        return json.dumps(dataclasses.asdict(self), default=str, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ServerRecord | None:
        """The record in `text`; None when there is none, as after a crash of the machine."""
        try:
            fields = json.loads(text)
            sockets, owner = fields["socket_directory"], fields["owner"]
            return cls(
                process=ProcessIdentity(**fields["process"]),
                owner=None if owner is None else ProcessIdentity(**owner),
                port=int(fields["port"]),
                socket_directory=None if sockets is None else Path(sockets),
            )
        except (ValueError, TypeError, KeyError):
            return None


class StateDirectory:
    """Paths, locks and the record of one embedded server. Belongs to one task at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.log = path / "log"
        self.sockets = path / "socket"
        self.start_log = path / "start.log"
        self.server = FileLock(path / "server.lock")
        self.transition = FileLock(path / "transition.lock")
        self._log_sizes: dict[Path, int] = {}

    def prepare(self) -> ServiceUser | None:
        """Make what is missing; the user to run the server as, when that is not this process's.

        Raises `EmbeddedServerError` when the directory cannot be used.
        """
        with file_errors(self.path):
            for path in (self.path.parent, self.path):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            user = service_user(self.data)
            if user is not None:
                user.make_reachable(self.path)
            for path in (self.log, self.sockets):
                path.mkdir(mode=0o700, exist_ok=True)
                if user is not None:
                    user.own(path)
            # A lock file is opened for writing: the first sign of a directory that is read-only.
            self.transition.is_taken()
        return user

    def check_free_space(self, free_min_bytes: int) -> None:
        """Raise `EmbeddedServerError` when the disk has less than that to spare."""
        with file_errors(self.path):
            free = shutil.disk_usage(self.path).free
        if free < free_min_bytes:
            raise EmbeddedServerError(
                f"the disk of {self.path} has {free >> 20} MiB left, and an embedded server wants "
                f"{free_min_bytes >> 20} MiB (TENANCY_SERVER_FREE_DISK_MIN_BYTES): free some "
                "space, or set TENANCY_HOME to a directory elsewhere"
            )

    def is_disk_full(self) -> bool:
        """Whether the disk has next to nothing to spare, for when a program does not say so."""
        with file_errors(self.path):
            return shutil.disk_usage(self.path).free < _FULL_BYTES

    def read_record(self) -> ServerRecord | None:
        """The server last started here, running or not."""
        try:
            with file_errors(self.path):
                return ServerRecord.from_json((self.path / "server.json").read_text())
        except EmbeddedServerError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def running_record(self) -> ServerRecord | None:
        """The server that runs here, when its main process is alive and known."""
        record = self.read_record()
        return record if record is not None and record.process.is_alive() else None

    def write_record(self, record: ServerRecord) -> None:
        """Replace the record."""
        with file_errors(self.path):
            replace_file(self.path / "server.json", record.to_json().encode())

    def is_in_use(self) -> bool:
        """Whether a process of a server that was started here still lives."""
        if not self.path.is_dir():
            return False
        with file_errors(self.path):
            return self.server.is_taken()

    def newest_log(self) -> Path:
        """The log file that is written to now, or the start's own where there is none."""
        with file_errors(self.log):
            files = sorted(self.log.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return files[-1] if files else self.start_log

    def mark_logs(self) -> None:
        """Remember how far the logs go, for `log_tail`."""
        with file_errors(self.log):
            self._log_sizes = {path: path.stat().st_size for path in self.log.glob("*.log")}

    def log_tail(self) -> str:
        """The end of what the server has said since `mark_logs`."""
        paths = (self.start_log, self.newest_log())
        with file_errors(self.log):
            return "\n".join(_tail(path, self._log_sizes.get(path, 0)) for path in paths)

    def prune_logs(self, files_max: int) -> None:
        """Remove the oldest log files beyond `files_max`."""
        with file_errors(self.log):
            files = sorted(self.log.glob("*.log*"), key=lambda path: path.stat().st_mtime)
            for path in files[:-files_max]:
                path.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, user: ServiceUser | None = None) -> None:
    """Put a file with mode 0600 in the place of `path`, whole and on the disk, or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if user is not None:
            user.own(fresh)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names that came into or left the directory last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `EmbeddedServerError` that says what to do about it."""
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(_explained(error, Path(error.filename or path))) from error


def _explained(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return disk_full(path)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"{path} is not writable ({error.strerror}): give it to the user that runs this, "
                "or set TENANCY_HOME to another directory"
            )
        case errno.ENOTDIR | errno.EEXIST:
            return f"{path} is in the way: a directory is needed there; remove it or move it away"
        case _:
            return f"{path} cannot be used ({error.strerror or error}); set TENANCY_HOME elsewhere"


def disk_full(path: Path) -> str:
    """What to say when the disk of `path` is full."""
    return (
        f"the disk of {path} is full (or the quota of its owner): free some space, or set "
        "TENANCY_HOME to a directory elsewhere"
    )


def _tail(path: Path, since: int) -> str:
    """The last part of a text file, from the byte `since` at most; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
