"""The operating-system user that embedded servers run as.

PostgreSQL refuses to run as root (manual, 18.1), and a server that strangers' statements reach has
no business with root's rights. Rules this module keeps:

* not root: servers run as the user that started them;
* root: as a system user of their own, made with `useradd` when it does not exist, else as an
  unprivileged user that is there already;
* a directory on the way to a server's files that is closed to that user is opened to it alone, by
  an access control list. Mode bits, which would open it to everyone, are left as they are.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.access_list import let_search

_log = logging.getLogger(__name__)

_OWN_USER = "embedded_postgres"
_FALLBACK_USERS = ("postgres", "nobody")
_PROGRAM_TIMEOUT_S = 30.0
_USERS_DIRECTORY = Path("/etc")
_LOCK_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceUser:
    """An unprivileged user to run a server as; only root can become it."""

    name: str
    uid: int
    gid: int

    def spawn_arguments(self) -> dict[str, Any]:
        """Arguments that make `subprocess.Popen` run the child as this user and nothing more."""
        return {"user": self.uid, "group": self.gid, "extra_groups": ()}

    def own(self, path: Path) -> None:
        """Make `path` this user's."""
        os.chown(path, self.uid, self.gid)

    def make_reachable(self, path: Path) -> None:
        """Let this user pass through every directory down to `path`, itself a directory.

        Blocks. Raises `EmbeddedServerError`, naming the directory that cannot be opened.
        """
        path = path.resolve()
        if self._can_enter(path):
            return
        for directory in reversed((path, *path.parents)):
            if not self._can_enter(directory):
                self._open(directory)

    def _can_enter(self, path: Path) -> bool:
        """Whether a process of this user can change to `path`: the kernel knows best."""
        done = subprocess.run(
            ["/bin/sh", "-c", 'cd -- "$1"', "sh", path],
            cwd="/",
            check=False,
            capture_output=True,
            timeout=_PROGRAM_TIMEOUT_S,
            **self.spawn_arguments(),
        )
        return done.returncode == 0

    def _open(self, directory: Path) -> None:
        try:
            let_search(directory, self.uid)
        except OSError as error:
            raise EmbeddedServerError(
                f"{directory} is closed to the user {self.name}, whom embedded servers run as, and "
                f"could not be opened to it ({error.strerror or error}): let it pass with "
                f"`chmod o+x {directory}`, or set TENANCY_HOME to another directory"
            ) from error
        _log.warning("%s: its access control list now lets %s pass", directory, self.name)


def service_user(data: Path | None = None) -> ServiceUser | None:
    """The user to run servers as, or None when that is the user of this process.

    The files in the directory `data`, when there is one already, decide: PostgreSQL wants to run as
    their owner. Blocks (it may run `useradd`). Raises `EmbeddedServerError` when this process is
    root and there is no other user.
    """
    if os.geteuid() != 0:
        return None
    if data is not None and data.is_dir() and (owner := data.stat()).st_uid != 0:
        return ServiceUser(name=_name(owner.st_uid), uid=owner.st_uid, gid=owner.st_gid)
    found = _known(_OWN_USER) or _added(_OWN_USER)
    for name in _FALLBACK_USERS:
        found = found or _known(name)
    if found is None:
        raise EmbeddedServerError(
            "embedded servers do not run as root, and there is no other user to run them as: "
            f"start this as another user, or make one with `useradd --system {_OWN_USER}`"
        )
    return found


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _known(name: str) -> ServiceUser | None:
    """The user of that name, unless there is none or it is root by another name."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    if entry.pw_uid == 0:
        return None
    return ServiceUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _added(name: str) -> ServiceUser | None:
    """A fresh system user without a password, a home or a shell; None when that is not possible."""
    program = shutil.which("useradd")
    if program is None:
        return None
    command = [program, "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name]
    with _making_users():
        found = _known(name)
        if found is not None:
            return found
        try:
            subprocess.run(command, check=False, capture_output=True, timeout=_PROGRAM_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return _known(name)


@contextmanager
def _making_users() -> Iterator[None]:
    """One maker of users at a time, among all threads and processes of this runtime.

    Two `useradd` of one name at the same time can both succeed, with two numbers: the first is then
    nobody's, and what was given to it is lost. Seen with shadow 4.13; PostgreSQL's and Redis's
    starts do exactly that. The lock is on the directory, so that no file is left behind; who cannot
    have it within the time limit goes on without.
    """
    descriptor = os.open(_USERS_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    give_up_s = time.monotonic() + _PROGRAM_TIMEOUT_S
    try:
        while time.monotonic() < give_up_s:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
