"""The process that Ray belongs to: it starts Ray, the actors and the HTTP endpoint.

It is the daemon's child and not the daemon itself, because a process that has lost Ray's own
processes cannot go on with new ones. The daemon then starts another one. Told by lines of JSON on
standard output: `{"step": ...}`, `{"ready": {...}}`, `{"error": ...}`.

Rules this module keeps: it ends with the daemon, whose death the kernel tells it of; asked to end
(SIGTERM), it lets requests that are in work end first; all of Ray is started from the main thread,
because its processes end with the thread that did.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tenancy.data_isolation.core import Settings, TenancyError
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.engine.process_identity import ProcessIdentity
from tenancy.data_isolation.serve import ray_runtime
from tenancy.data_isolation.serve.ray_runtime import RayPaths
from tenancy.data_isolation.serve.replicas_file import Replicas

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
#: Beyond the drain: Ray's own processes end one after the other.
_STOP_MARGIN_S = 60.0
_WATCH_INTERVAL_S = 1.0
_STATUS_LOST = 3
_CORE = frozenset({"gcs_server", "raylet"})
_LOG_BYTES_MAX = 8 * 1024 * 1024
_MODULE = "tenancy.data_isolation.serve.cluster_process"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterPlan:
    """What the process has to know: paths, where the HTTP endpoint goes, and its processes."""

    paths: RayPaths
    configuration: Path
    http_port: int
    replicas: Replicas

    def arguments(self) -> list[str]:
        """The plan as arguments of a command."""
        places = (self.paths.directory, self.paths.token, self.configuration)
        return [*(str(place) for place in places), str(self.http_port), self.replicas.text()]

    @classmethod
    def of(cls, arguments: list[str]) -> ClusterPlan:
        """The plan that `arguments` spells."""
        directory, token, configuration, port, replicas = arguments
        return cls(
            paths=RayPaths(directory=Path(directory), token=Path(token)),
            configuration=Path(configuration),
            http_port=int(port),
            replicas=Replicas.of(replicas),
        )


class ClusterProcess:
    """The process as the daemon sees it. Used from the daemon's main thread."""

    def __init__(self, plan: ClusterPlan, settings: Settings, log: Path) -> None:
        self._settings = settings
        ray_runtime.prepare(settings, plan.paths)
        _put_aside(log)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, *plan.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | ray_runtime.environment(settings, plan.paths),
                text=True,
            )

    def wait_until_ready(self, told: Callable[[str], None]) -> Mapping[str, Any]:
        """What it says when it is ready; `told` gets the steps before. Raises `SetupError`.

        It has time limits of its own for each step.
        """
        assert self._process.stdout is not None  # noqa: S101 - asked for above.
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # Something that a library printed.
            if not isinstance(said, dict):
                continue
            if "step" in said:
                told(said["step"])
            elif "error" in said:
                raise SetupError(said["error"])
            elif "ready" in said:
                ready: Mapping[str, Any] = said["ready"]
                # Nobody reads on, and a full pipe would stop who still writes.
                threading.Thread(target=self._drop_output, daemon=True).start()
                return ready
        raise SetupError(f"Ray ended while it was starting (status {self._process.wait()})")

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it: in peace, then by force."""
        self._process.terminate()
        try:
            self._process.wait(self._settings.drain_timeout_s + _STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            _log.error("Ray does not end in time and is ended by force")
            self._process.kill()
            self._process.wait()

    def _drop_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - asked for above.
        for _ in self._process.stdout:
            pass


def _put_aside(log: Path) -> None:
    """Begin a new log when the old one has grown; one old one is kept."""
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_name(f"{log.name}.1"))


def main() -> None:
    """Start everything, wait until asked to end, end everything."""
    _end_with_parent()
    plan = ClusterPlan.of(sys.argv[1:])
    settings = Settings.from_env(http_port=plan.http_port)
    asked = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    status = 0
    try:
        _start(plan, settings)
        # Ray may have put a handler of its own in the place of ours.
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        _say(ready={"ray_address": ray_runtime.address()})
        _watch(asked)
    except _InterruptedError:
        _log.info("asked to end while starting")
    except TenancyError as error:
        _say(error=error.detail)
        status = 1
    except Exception as error:
        _log.exception("Ray did not start")
        _say(error=f"Ray did not start: {type(error).__name__}: {str(error)[:500]}")
        status = 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop()
    sys.stdout.flush()
    # Ray's threads have nothing left to do, and may take their time to see it.
    os._exit(status)


class _InterruptedError(BaseException):
    """Asked to end while starting. No `Exception`, so that no library handles it."""


def _interrupt(*_: Any) -> None:
    raise _InterruptedError


def _start(plan: ClusterPlan, settings: Settings) -> None:
    _say(step="starting Ray")
    ray_runtime.start(settings, plan.paths)
    signal.signal(signal.SIGTERM, _interrupt)
    # Imported late: these import Ray and more, and Ray can start meanwhile.
    from tenancy.data_isolation.actors.configuration import read_configuration
    from tenancy.data_isolation.serve import app

    _say(step="starting the tenant actors")
    mover = app.start_actors(read_configuration(plan.configuration), plan.configuration)
    _say(step="starting the HTTP endpoint")
    app.start_endpoint(settings, plan.configuration, plan.replicas)
    # It has started meanwhile: the endpoint takes longer.
    app.wait_for_mover(mover, settings)


def _watch(asked: threading.Event) -> None:
    """Wait until asked to end. When Ray has lost a part that it is nothing without, end at once.

    Ray itself would try to reach that part for minutes. The kernel ends the rest with this process.
    """
    core = _core_processes()
    while not asked.wait(_WATCH_INTERVAL_S):
        if not all(process.is_alive() for process in core):
            _log.error("a core process of Ray has ended")
            os._exit(_STATUS_LOST)


def _core_processes() -> list[ProcessIdentity]:
    """The parts of Ray that started as children of this process and must not end."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if os.path.basename(child.exe()) in _CORE:
                identity = ProcessIdentity.of(child.pid)
                found += [identity] if identity is not None else []
    return found


def _stop() -> None:
    """End what was started, in the reverse order; go on when a step fails."""
    app = sys.modules.get("tenancy.data_isolation.serve.app")
    for step in (
        getattr(app, "stop_endpoint", None),
        getattr(app, "stop_actors", None),
        ray_runtime.stop,
    ):
        if step is None:
            continue
        try:
            step()
        except Exception:
            _log.exception("a part of Ray did not end well")


def _say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def _end_with_parent() -> None:
    """Have the kernel end this process when the daemon has ended."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
