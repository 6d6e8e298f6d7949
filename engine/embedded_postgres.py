"""The PostgreSQL server that the runtime brings along, for those who have none of their own.

Rules this module keeps:

* A row that was acknowledged is on the disk (`fsync` and `synchronous_commit` are on), whatever is
  killed; page checksums tell when the disk lies.
* It listens on the loopback address and on a unix socket, and asks everyone for a password (SCRAM,
  RFC 7677). The superuser's is random and lies under `TENANCY_HOME/secrets`.
* No value of a tenant gets into its log: no statements, no parameters, and no errors either, since
  their texts quote values. The client gets those.

Whom the server belongs to and when it ends is told in `supervision`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGQUIT

import asyncpg

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.postgres_binaries import PostgresBinaries
from tenancy.data_isolation.engine.postgres_cluster import ClusterState, PostgresCluster
from tenancy.data_isolation.engine.secret_file import kept_secret
from tenancy.data_isolation.engine.service_user import ServiceUser
from tenancy.data_isolation.engine.state_directory import (
    ServerRecord,
    StateDirectory,
    disk_full,
    file_errors,
    replace_file,
)
from tenancy.data_isolation.engine.supervision import LOOPBACK, Launch, ServerState, Supervisor

_log = logging.getLogger(__name__)

SUPERUSER = "tenancy_admin"
_DATABASE = "postgres"
_ANSWER_TIMEOUT_S = 5.0
#: Bytes of a unix socket's path, without the zero at its end (unix(7)).
_SOCKET_PATH_BYTES_MAX = 107
#: Where the socket goes when the path of `TENANCY_HOME` is too long for one.
_SHORT_DIRECTORY = Path("/tmp")  # noqa: S108 - only a directory of a random name is made in it
_LOG_FILES_MAX = 8

# What an administrator may tune with ALTER SYSTEM; it lies in a file.
_DEFAULTS: Mapping[str, str] = {
    "max_connections": "100",
    # Suited to a small machine; the operating system's cache does the rest.
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    # Fleet migrations and dumps take a lock for each of a great many tables.
    "max_locks_per_transaction": "256",
    # Statements here are short, and compiling them takes longer than running them.
    "jit": "off",
    "log_rotation_size": "16MB",
    "log_rotation_age": "1d",
}

# What must hold, given on the command line, which nothing overrides.
_FIXED: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "ssl": "off",
    "fsync": "on",
    "full_page_writes": "on",
    "logging_collector": "on",
    "log_destination": "stderr",
    "log_filename": "postgresql-%Y%m%d-%H%M%S.log",
    "log_file_mode": "0600",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    # Above ERROR in the order that the server's log has: LOG, FATAL and PANIC remain.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "lc_messages": "C",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresHandle:
    """How to reach the embedded PostgreSQL.

    `dsn` is the superuser's over loopback, for the maintenance database; it holds the password.
    """

    dsn: str = field(repr=False)
    port: int
    socket_directory: Path
    pid: int

    def server_config(self, name: str = "main", region: str | None = None) -> ServerConfig:
        """The server as the engine's configuration names it."""
        return ServerConfig(dsn=self.dsn, name=name, region=region)


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresStatus:
    """What there is of the embedded PostgreSQL; `handle` only while it runs."""

    state: ServerState
    data_directory: Path
    log_file: Path
    password_file: Path
    handle: PostgresHandle | None


class EmbeddedPostgres:
    """The embedded PostgreSQL of one `TENANCY_HOME`. Belongs to one task at a time.

    `detached`: the server stays when this process ends, until `shut_down`.
    """

    def __init__(self, settings: Settings, *, detached: bool = False) -> None:
        self._state = StateDirectory(settings.home / "postgres")
        self._program = _Postgres(self._state, settings)
        self._supervisor = Supervisor(
            self._state,
            self._program,
            port=settings.postgres_port,
            detached=detached,
            timeout_s=settings.server_start_timeout_s,
            free_disk_min_bytes=settings.server_free_disk_min_bytes,
        )

    async def start(self) -> PostgresHandle:
        """Have the server running, started by this call or found running.

        Raises `EmbeddedServerError`, which says what is in the way.
        """
        record = await self._supervisor.start()
        await in_thread(self._state.prune_logs, _LOG_FILES_MAX)
        return await in_thread(self._program.handle, record)

    async def stop(self) -> None:
        """End the server if this object started it and it is not detached; else leave it."""
        await self._supervisor.stop()
        await in_thread(self._program.remove_sockets)

    async def shut_down(self) -> bool:
        """End the server, whoever started it; whether it ran. Open transactions are rolled back."""
        ran = await self._supervisor.shut_down()
        await in_thread(self._program.remove_sockets)
        return ran

    async def health(self) -> bool:
        """Whether the server runs and answers a query. Also removes the oldest log files."""
        record = await in_thread(self._state.running_record)
        if record is None:
            return False
        await in_thread(self._state.prune_logs, _LOG_FILES_MAX)
        try:
            return await self._program.answers(record)
        except EmbeddedServerError:
            return False

    def status(self) -> PostgresStatus:
        """What there is of the server. Reads a few small files."""
        state = self._supervisor.state()
        record = self._state.running_record() if state is ServerState.RUNNING else None
        return PostgresStatus(
            state=state,
            data_directory=self._state.data,
            log_file=self._state.newest_log(),
            password_file=self._program.password_file,
            handle=None if record is None else self._program.handle(record),
        )


class _Postgres:
    """PostgreSQL as the supervision sees it (`supervision.Program`)."""

    title = "the embedded PostgreSQL"
    port_variable = "TENANCY_POSTGRES_PORT"
    # Fast and immediate shutdown (manual, 18.5). The smart one would wait for every client.
    graceful = SIGINT
    immediate = SIGQUIT

    def __init__(self, state: StateDirectory, settings: Settings) -> None:
        self.password_file = settings.home / "secrets" / "postgres_admin_password"
        self._state = state
        self._bin = settings.postgres_bin
        self._statistics_max = settings.statement_statistics_max
        self._binaries: PostgresBinaries | None = None
        self._cluster = PostgresCluster(
            state, superuser=SUPERUSER, timeout_s=settings.server_start_timeout_s
        )

    async def prepare(self, user: ServiceUser | None) -> None:
        """Make the cluster, unless it is there and can be served."""
        cluster, data = self._cluster, self._state.data
        binaries = await in_thread(PostgresBinaries.find, self._bin, user)
        self._binaries = binaries
        await in_thread(cluster.remove_leftovers)
        state = await in_thread(cluster.state)
        match state:
            case ClusterState.FOREIGN:
                raise EmbeddedServerError(
                    f"{data} holds a PostgreSQL cluster that this runtime did not make: serve it "
                    "yourself and set TENANCY_POSTGRES_DSN, or move it away"
                )
            case ClusterState.DAMAGED:
                raise EmbeddedServerError(
                    f"{data} holds databases, but files that no PostgreSQL cluster is without are "
                    "missing: restore it from a backup, or move it away to start with an empty one"
                )
            case ClusterState.HALF_MADE:
                aside = await in_thread(cluster.move_aside)
                _log.warning("%s was only half made; it is now %s", data, aside)
        if state is ClusterState.OURS:
            await in_thread(cluster.check, binaries, user)
            await in_thread(cluster.clear_stale_pid_file)
            await in_thread(self._password)
        else:
            secret = await in_thread(kept_secret, self.password_file)
            await cluster.make(binaries, user, secret)

    def launch(self, port: int, user: ServiceUser | None) -> Launch:
        """The command; also writes the configuration file that it names."""
        if self._binaries is None:
            raise RuntimeError("prepare() comes before launch()")
        sockets = self._socket_directory(port, user)
        configuration = self._state.path / "postgresql.conf"
        # What initdb found out about the machine comes first.
        lines = [f"include '{_quoted(self._state.data / configuration.name)}'"]
        defaults = {**_DEFAULTS, **self._statistics()}
        lines += [f"{name} = '{value}'" for name, value in defaults.items()]
        with file_errors(configuration):
            replace_file(configuration, "\n".join(lines).encode() + b"\n", user)
        fixed = dict(_FIXED) | {
            "config_file": str(configuration),
            "port": str(port),
            "unix_socket_directories": f'"{sockets}"',
            "log_directory": str(self._state.log),
        }
        options = [f"--{name}={value}" for name, value in fixed.items()]
        command: list[str | Path] = [self._binaries.postgres, "-D", self._state.data, *options]
        return Launch(command=command, socket_directory=sockets)

    def _statistics(self) -> dict[str, str]:
        """What has the server count what statements take (`index_advice`)."""
        most = self._statistics_max
        if not most:
            return {}
        return {
            "shared_preload_libraries": "pg_stat_statements",
            "pg_stat_statements.max": str(most),
            # Their texts are not freed of values (manual, F.32).
            "pg_stat_statements.track_utility": "off",
        }

    async def answers(self, record: ServerRecord) -> bool:
        """Whether the server is ready and knows our password."""
        if not await in_thread(self._is_ready, record.process.pid):
            return False
        dsn = await in_thread(self._dsn, record.port)
        try:
            connection = await asyncpg.connect(dsn, timeout=_ANSWER_TIMEOUT_S)
        except asyncpg.TooManyConnectionsError:
            return True
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
            raise EmbeddedServerError(
                f"the password in {self.password_file} is not that of {SUPERUSER} in the cluster "
                f"{self._state.data}: put the file that belongs to the cluster back"
            ) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            refused = not isinstance(error, asyncpg.CannotConnectNowError | OSError)
            if refused and await in_thread(self._state.is_disk_full):
                # The server runs, but writes a file for whom it lets in, and cannot.
                raise EmbeddedServerError(disk_full(self._state.data)) from None
            return False
        try:
            return bool(await connection.fetchval("select true", timeout=_ANSWER_TIMEOUT_S))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            return False
        finally:
            connection.terminate()

    def explain(self, log: str) -> str | None:
        """The first line with which the server gave up."""
        for line in log.splitlines():
            for word in ("FATAL:", "PANIC:", "Permission denied", "error while loading"):
                if word in line:
                    return line[line.index(word) :] if word.endswith(":") else line
        return None

    def handle(self, record: ServerRecord) -> PostgresHandle:
        """How to reach the server of that record. Reads the password's file."""
        return PostgresHandle(
            dsn=self._dsn(record.port),
            port=record.port,
            socket_directory=record.socket_directory or self._state.sockets,
            pid=record.process.pid,
        )

    def _dsn(self, port: int) -> str:
        where = f"{SUPERUSER}:{self._password()}@{LOOPBACK}:{port}/{_DATABASE}"
        # Nothing listens in on loopback, and asking for TLS first would cost a round trip.
        return f"postgresql://{where}?sslmode=disable"

    def _password(self) -> str:
        """The superuser's password, which must be there, since the cluster is."""
        try:
            with file_errors(self.password_file):
                return self.password_file.read_text().strip()
        except EmbeddedServerError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise EmbeddedServerError(
                f"{self.password_file} is gone, and with it the password of {SUPERUSER} in the "
                f"cluster {self._state.data}: put it back from a backup"
            ) from None

    def _is_ready(self, pid: int) -> bool:
        """What the server itself says in its pid file: line 1 the pid, line 8 its state."""
        try:
            lines = (self._state.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _socket_directory(self, port: int, user: ServiceUser | None) -> Path:
        """An empty directory for the unix socket, with a path that is short enough for one."""
        # A lock file next to a socket that was left there is taken for a living server's when its
        # pid has been given out again. No server runs here now, so there is none.
        with file_errors(self._state.sockets):
            for left in self._state.sockets.glob(".s.PGSQL.*"):
                left.unlink(missing_ok=True)
        if len(os.fsencode(self._state.sockets / f".s.PGSQL.{port}")) <= _SOCKET_PATH_BYTES_MAX:
            return self._state.sockets
        # A name of its own each time, which nobody can have put there to catch our clients.
        self.remove_sockets()
        with file_errors(_SHORT_DIRECTORY):
            directory = Path(tempfile.mkdtemp(prefix=self._socket_prefix(), dir=_SHORT_DIRECTORY))
            if user is not None:
                user.own(directory)
        return directory

    def remove_sockets(self) -> None:
        """Remove the socket directory that a server which has ended had outside of its own."""
        last = self._state.read_record()
        if last is None or last.socket_directory is None or self._state.is_in_use():
            return
        directory = last.socket_directory
        if directory.parent == _SHORT_DIRECTORY and directory.name.startswith(
            self._socket_prefix()
        ):
            shutil.rmtree(directory, ignore_errors=True)

    def _socket_prefix(self) -> str:
        return f"tenancy-{hashlib.sha256(os.fsencode(self._state.path)).hexdigest()[:8]}-"


def _quoted(path: Path) -> str:
    """A path between the quotes of PostgreSQL's configuration file (manual, 19.1.2)."""
    return str(path).replace("'", "''")
