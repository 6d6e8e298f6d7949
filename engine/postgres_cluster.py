"""The data directory of the embedded PostgreSQL (a *cluster*, manual 18.2) and how it is made.

Rules this module keeps:

* A cluster is made next to its place and gets its name when it is complete, so `data` is whole or
  absent wherever the making is cut off. What such a making left is removed.
* A cluster of ours carries the file `tenancy.cluster`. Another one is refused, not used.
* Nothing that may hold someone's rows is ever removed: what is in the way and is no cluster is
  moved aside, and only when no database of a user is in it.
"""

from __future__ import annotations

import shutil
import tempfile
from enum import StrEnum
from pathlib import Path

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.postgres_binaries import PostgresBinaries
from tenancy.data_isolation.engine.process_identity import processes_inside
from tenancy.data_isolation.engine.server_tool import run_tool
from tenancy.data_isolation.engine.service_user import ServiceUser
from tenancy.data_isolation.engine.state_directory import (
    StateDirectory,
    disk_full,
    file_errors,
    replace_file,
    sync_directory,
)

_MARK = "tenancy.cluster"
_MAKING = "data.making-"
_ASIDE = "data.aside-"
#: The first object id of anything that a user made (PostgreSQL, access/transam.h).
_FIRST_USER_OBJECT = 16384


class ClusterState(StrEnum):
    """What is in the place of the data directory."""

    ABSENT = "absent"
    OURS = "ours"
    #: A cluster that something else made.
    FOREIGN = "foreign"
    #: Parts of a cluster without the one file that no cluster is without, and no user's database.
    HALF_MADE = "half made"
    #: The same, but with databases of users in it.
    DAMAGED = "damaged"


class PostgresCluster:
    """The data directory of `state`. Used with the transition lock held."""

    def __init__(self, state: StateDirectory, *, superuser: str, timeout_s: float) -> None:
        self._state = state
        self._superuser = superuser
        self._timeout_s = timeout_s

    def state(self) -> ClusterState:
        """What is there now. Blocks for a moment."""
        data = self._state.data
        with file_errors(data):
            if not data.exists() or (data.is_dir() and not any(data.iterdir())):
                return ClusterState.ABSENT
            if (data / "PG_VERSION").is_file() and (data / "global" / "pg_control").is_file():
                return ClusterState.OURS if (data / _MARK).is_file() else ClusterState.FOREIGN
            damaged = any(_is_user_database(path) for path in data.glob("base/*"))
            return ClusterState.DAMAGED if damaged else ClusterState.HALF_MADE

    def check(self, binaries: PostgresBinaries, user: ServiceUser | None) -> None:
        """Raise `EmbeddedServerError` when the cluster cannot be served by this user's server."""
        data = self._state.data
        with file_errors(data):
            version = (data / "PG_VERSION").read_text().strip()
            owner = data.stat().st_uid
        if version != str(binaries.major):
            raise EmbeddedServerError(
                f"{data} holds a cluster of PostgreSQL {version}, and {binaries.directory} is "
                f"PostgreSQL {binaries.major}: set TENANCY_POSTGRES_BIN to programs of version "
                f"{version}, or bring the cluster to version {binaries.major} with pg_upgrade, or "
                "with pg_dumpall and a new TENANCY_HOME"
            )
        if user is not None and owner != user.uid:
            raise EmbeddedServerError(
                f"{data} belongs to another user than {user.name}, whom its server would run as: "
                f"`chown -R {user.name} {data}`"
            )

    async def make(self, binaries: PostgresBinaries, user: ServiceUser | None, secret: str) -> None:
        """Make the cluster, and its superuser with the password `secret`.

        Wherever it is cut off, it leaves nothing in the place of the data directory.
        """
        workshop = await in_thread(self._workshop, user, secret)
        try:
            command: list[str | Path] = [
                binaries.initdb,
                f"--pgdata={workshop / 'data'}",
                f"--username={self._superuser}",
                f"--pwfile={workshop / 'password'}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--data-checksums",
                *binaries.locale_arguments(),
            ]
            code, said = await run_tool(
                command, state=self._state, user=user, timeout_s=self._timeout_s
            )
            if code != 0:
                raise EmbeddedServerError(_initdb_failed(said, self._state.data))
            await in_thread(self._put_in_place, workshop / "data", binaries, user)
        finally:
            await in_thread(shutil.rmtree, workshop, ignore_errors=True)

    def _workshop(self, user: ServiceUser | None, secret: str) -> Path:
        """A directory next to `data` to make the cluster in, with the password for initdb."""
        with file_errors(self._state.path):
            workshop = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self._state.path))
            if user is not None:
                user.own(workshop)
            replace_file(workshop / "password", secret.encode() + b"\n", user)
        return workshop

    def _put_in_place(
        self, made: Path, binaries: PostgresBinaries, user: ServiceUser | None
    ) -> None:
        with file_errors(self._state.data):
            replace_file(made / _MARK, f"PostgreSQL {binaries.major}\n".encode(), user)
            made.replace(self._state.data)  # Onto an empty directory or none (rename(2)).
            sync_directory(self._state.path)

    def remove_leftovers(self) -> None:
        """Remove what a making that was cut off has left: never was such a cluster served."""
        with file_errors(self._state.path):
            for path in self._state.path.glob(_MAKING + "*"):
                shutil.rmtree(path)

    def move_aside(self) -> Path:
        """Give what is in the place of the data directory another name, which is returned."""
        with file_errors(self._state.data):
            aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=self._state.path))
            self._state.data.replace(aside)
        return aside

    def clear_stale_pid_file(self) -> None:
        """Remove a `postmaster.pid` that no server stands for.

        PostgreSQL takes a pid in it that lives, whatever it is now, for a server (it cannot know
        better) and refuses to start. We can: the server's lock is free, so none that was started
        here lives, and one that was started by hand would work in the directory.
        """
        data = self._state.data
        servers = processes_inside(data)
        if servers:
            raise EmbeddedServerError(
                f"{data} is in use by the process {servers[0].pid}, which was not started from "
                "here: stop that server first (`pg_ctl stop`)"
            )
        with file_errors(data):
            (data / "postmaster.pid").unlink(missing_ok=True)


def _is_user_database(directory: Path) -> bool:
    return directory.name.isdigit() and int(directory.name) >= _FIRST_USER_OBJECT


def _initdb_failed(said: str, data: Path) -> str:
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"the data directory was not made: {disk_full(data)}"
    lines = [line for line in said.splitlines() if "error" in line or "FATAL" in line]
    reason = lines[0] if lines else said.strip().rpartition("\n")[2]
    return f"{data} could not be made by initdb: {reason}"
