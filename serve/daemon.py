"""The process behind `tenancy up`: it starts everything in order, watches it, and ends it.

Order: embedded servers (unless given by DSN) → roles, databases and catalog → the first admin key →
watchdogs → Ray → tenant actors → HTTP. It ends in the reverse order.

Rules this module keeps:

* One daemon per `TENANCY_HOME`: it holds the lock while it lives, and the kernel takes that back
  however it ends. What an earlier one left behind is ended first.
* What it started ends with it: embedded servers and Ray watch their owner, and what Ray leaves
  behind is found by working directory and session.
* A start that fails leaves nothing running and says why in `state.json`.
* When Ray is lost, the daemon starts it again; PostgreSQL, which holds all the data, stays up.
* This process does not join Ray: who has lost its Ray cannot go on with another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from logging.handlers import RotatingFileHandler
from types import FrameType
from typing import Any, NoReturn

from tenancy.data_isolation.core import Settings, TenancyError
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.engine.process_identity import ProcessIdentity
from tenancy.data_isolation.serve.certificate_renewal import CertificateRenewal
from tenancy.data_isolation.serve.cluster_process import ClusterPlan, ClusterProcess
from tenancy.data_isolation.serve.data_plane import DataPlane, ServersMovedError
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.endpoint_certificate import endpoint_certificate
from tenancy.data_isolation.serve.json_web_tokens import token_verifier
from tenancy.data_isolation.serve.ray_runtime import RayPaths
from tenancy.data_isolation.serve.replicas_file import Replicas, replicas
from tenancy.data_isolation.serve.runtime_state import (
    STATUS_OTHER,
    Phase,
    RuntimeDirectory,
    RuntimeState,
)
from tenancy.data_isolation.serve.started_settings import settings_path, write_started
from tenancy.data_isolation.serve.watchdog_thread import WatchdogThread

_log = logging.getLogger(__name__)

#: Exit status when the start failed.
STATUS_FAILED = 1

_LOG_BYTES_MAX = 8 * 1024 * 1024
_LOG_FILES_MAX = 3
_WATCH_INTERVAL_S = 2.0
_LEFTOVER_TIMEOUT_S = 5.0
#: Restarts of Ray within this time after which the daemon gives up.
_RESTARTS_MAX = 5
_RESTART_WINDOW_S = 600.0


class _StopError(KeyboardInterrupt):
    """A signal asked the daemon to end.

    Of this class, so that nothing on the way handles it: asyncio lets out of a task only this and
    `SystemExit`.
    """


class _RayLostError(Exception):
    """The process that Ray belongs to has ended, and with it all of Ray."""


class Daemon:
    """The runtime of one `TENANCY_HOME`, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = RuntimeDirectory(settings.home)
        #: As they were asked for; a port of 0 becomes another one.
        self._asked_for = settings
        self._runner = asyncio.Runner()
        self._data = DataPlane(settings, self._directory)
        self._state = RuntimeState(
            state=Phase.STARTING,
            home=str(settings.home),
            log_directory=str(self._directory.log),
            admin_key_file=str(self._directory.admin_key),
            ray_auth_token_file=str(self._directory.ray_token),
            version=version("tenancy-data-isolation"),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            daemon=ProcessIdentity.of(os.getpid()),
        )
        self._stopping = False
        self._cluster: ClusterProcess | None = None
        self._watchdogs: WatchdogThread | None = None
        self._renewal: CertificateRenewal | None = None
        self._replicas = Replicas(number=1)

    def run(self) -> int:
        """Start, watch until a signal comes, end; the exit status."""
        self._directory.prepare()
        if not self._directory.lock.try_take():
            return STATUS_OTHER
        try:
            with _signals(self._asked_to_stop):
                return self._lived()
        finally:
            self._runner.close()
            self._directory.lock.release()

    def _lived(self) -> int:
        error: str | None = None
        try:
            self._start()
            self._watch()
        except _StopError:
            _log.info("asked to stop")
        except TenancyError as known:
            error = known.detail
            _log.error("%s", error)
        except Exception:
            error = f"an error that was not foreseen; see {self._directory.log}/daemon.log"
            _log.exception("the daemon failed")
        finally:
            # From here on nothing may interrupt: what was started has to end.
            self._stopping = True
            self._tell(Phase.STOPPING, "ending")
            self._end()
        self._state = RuntimeState(
            state=Phase.STOPPED,
            home=str(self._settings.home),
            error=error,
            daemon=self._state.daemon,
        )
        self._directory.write(self._state)
        return 0 if error is None else STATUS_FAILED

    # Starting

    def _start(self) -> None:
        self._tell(Phase.STARTING, "looking for leftovers of an earlier run")
        left = self._directory.end_leftovers(_LEFTOVER_TIMEOUT_S)
        if left:
            raise SetupError(
                f"processes of an earlier run do not end: {', '.join(str(p.pid) for p in left)}"
            )
        write_started(self._asked_for, settings_path(self._directory.home))
        self._check_port()
        # What would stop the last step is better told before the first.
        token_verifier(self._settings, SystemClock())
        # Read once: a file that is changed counts with the next start.
        self._replicas = replicas(self._settings)
        if endpoint_certificate(self._settings) is None and not is_local(self._settings.http_host):
            _log.warning(
                "the endpoint listens on %s without TLS: keys and data cross the network in plain "
                "text; set TENANCY_HTTP_TLS_CERTIFICATE and TENANCY_HTTP_TLS_KEY",
                self._settings.http_host,
            )
        self._tell(Phase.STARTING, "starting PostgreSQL and Redis")
        self._await(self._data.start_servers())
        self._note(postgres_dsn=self._data.postgres_dsn, redis_url=self._data.redis_url)
        self._tell(Phase.STARTING, "setting up roles, databases and the catalog")
        self._await(self._data.set_up())
        self._start_watchdogs()
        self._start_ray()

    def _start_watchdogs(self) -> None:
        self._watchdogs = self._await(self._data.watchdogs())
        self._watchdogs.start()

    def _start_ray(self) -> None:
        endpoint = Endpoint.of(self._settings)
        configuration = self._data.write_configuration()
        plan = ClusterPlan(
            paths=RayPaths(
                directory=self._directory.short_directory(), token=self._directory.ray_token
            ),
            configuration=configuration,
            http_port=self._settings.http_port,
            replicas=self._replicas,
        )
        if endpoint.url.startswith("https:"):
            self._renewal = CertificateRenewal(self._settings, endpoint.name, plan.paths)
        self._cluster = ClusterProcess(plan, self._settings, self._directory.log / "cluster.log")
        ready = self._cluster.wait_until_ready(lambda step: self._tell(self._state.state, step))
        self._note(
            url=endpoint.url,
            local_url=endpoint.local_url,
            tls_ca_file=endpoint.ca_file,
            ray_address=ready["ray_address"],
        )
        self._tell(Phase.RUNNING, "")

    def _check_port(self) -> None:
        """Fail now, and in clear words, when something else has our port."""
        host, port = self._settings.http_host, self._settings.http_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                raise SetupError(
                    f"the HTTP endpoint cannot listen on {host}, port {port}: "
                    f"{(error.strerror or str(error)).lower()}; set TENANCY_HTTP_PORT to another "
                    "one (0 = a free one)"
                ) from None
            chosen = probe.getsockname()[1]
        if port == 0:
            self._settings = dataclasses.replace(self._settings, http_port=chosen)

    # Living

    def _watch(self) -> NoReturn:
        """Look after everything until a signal comes."""
        restarts: list[float] = []
        while True:
            try:
                self._look()
            except (_RayLostError, ServersMovedError) as lost:
                now = time.monotonic()
                restarts = [at for at in restarts if now - at < _RESTART_WINDOW_S] + [now]
                if len(restarts) > _RESTARTS_MAX:
                    raise SetupError(
                        f"Ray was lost {len(restarts)} times in a row: {lost}"
                    ) from None
                _log.error("%s; it is started again", lost)
                self._tell(Phase.DEGRADED, f"{lost}; it is started again")
                self._note(postgres_dsn=self._data.postgres_dsn, redis_url=self._data.redis_url)
                self._end_ray()
                if isinstance(lost, ServersMovedError):
                    self._end_watchdogs()
                    self._start_watchdogs()
                self._start_ray()
            # A signal ends the wait at once.
            time.sleep(_WATCH_INTERVAL_S)

    def _look(self) -> None:
        if self._cluster is None or not self._cluster.is_alive():
            raise _RayLostError("Ray has ended")
        matter = self._await(self._data.mend())
        if matter is None and self._renewal is not None:
            matter = self._renewal.look()
        if matter is None and self._state.state is Phase.DEGRADED:
            self._tell(Phase.RUNNING, "")
        elif matter is not None and self._state.detail != matter:
            _log.error("%s", matter)
            self._tell(Phase.DEGRADED, matter)

    # Ending

    def _end(self) -> None:
        """End all that was started, in the reverse order; go on when a step fails."""
        self._end_ray()
        self._end_watchdogs()
        with _logged("PostgreSQL and Redis"):
            self._await(self._data.stop_servers())

    def _end_watchdogs(self) -> None:
        watchdogs, self._watchdogs = self._watchdogs, None
        if watchdogs is not None:
            with _logged("the watchdogs"):
                watchdogs.stop()

    def _end_ray(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            with _logged("Ray"):
                cluster.end()
        with _logged("processes of Ray"):
            left = self._directory.end_leftovers(_LEFTOVER_TIMEOUT_S)
            if left:
                _log.error("these processes do not end: %s", [item.pid for item in left])
        with _logged("files of Ray"):
            self._directory.remove_short_directories()

    # Parts

    def _await(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        try:
            return self._runner.run(awaited())
        except _StopError:
            # What was interrupted must not go on when the loop runs again.
            _cancel_all(self._runner.get_loop())
            raise

    def _note(self, **fields: Any) -> None:
        self._state = dataclasses.replace(self._state, **fields)

    def _tell(self, phase: Phase, detail: str) -> None:
        self._note(state=phase, detail=detail)
        _log.info("%s%s", phase, f": {detail}" if detail else "")
        with _logged("the state file"):
            self._directory.write(self._state)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            raise _StopError


def main() -> None:
    """Run the daemon of `TENANCY_HOME` in this process."""
    settings = Settings.from_env()
    directory = RuntimeDirectory(settings.home)
    directory.prepare()
    _log_to(directory)
    # All that is started has this working directory, and is known by it.
    os.chdir(directory.work)
    raise SystemExit(Daemon(settings).run())


def _log_to(directory: RuntimeDirectory) -> None:
    handler = RotatingFileHandler(
        directory.log / "daemon.log", maxBytes=_LOG_BYTES_MAX, backupCount=_LOG_FILES_MAX
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


@contextlib.contextmanager
def _signals(handler: Any) -> Iterator[None]:
    _install(handler)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def _install(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log what goes wrong at the end, and go on."""
    try:
        yield
    except Exception:
        _log.exception("%s did not end well", what)


if __name__ == "__main__":
    main()
