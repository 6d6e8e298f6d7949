"""`tenancy up`, `down` and `status`: the runtime as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SetupError, TenancyError
from tenancy.data_isolation.engine.process_identity import ProcessIdentity
from tenancy.data_isolation.serve.runtime_state import (
    STATUS_OTHER,
    Phase,
    RuntimeDirectory,
    RuntimeState,
)
from tenancy.data_isolation.serve.started_settings import differences, settings_path
from tenancy.data_isolation.serve.terminal import (
    STATUS_UNSETTLED,
    AsJson,
    CommandError,
    Timeout,
    note,
    print_fields,
    print_json,
    say,
)

if TYPE_CHECKING:
    from tenancy.data_isolation.serve.watchdog_report import WatchState

#: Exit status of `tenancy status` (as in the Linux Standard Base: not running).
STATUS_STOPPED = 3

_POLL_INTERVAL_S = 0.1
_READY_TIMEOUT_S = 10.0
_LEFTOVER_TIMEOUT_S = 5.0
#: Beyond the drain and the servers' own time to end.
_STOP_MARGIN_S = 60.0


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(timeout: Timeout = None, as_json: AsJson = False) -> None:
    """Start everything, or say that it runs; prints the URL and where the admin key is.

    Exit status 1 when it runs with other settings than those that are given now.

    Starts the embedded PostgreSQL and Redis (unless TENANCY_POSTGRES_DSN and TENANCY_REDIS_URL name
    others), local Ray and the HTTP endpoint, in the background.
    """
    settings = Settings.from_env()
    directory = RuntimeDirectory(settings.home)
    directory.prepare()
    deadline = time.monotonic() + (timeout or _start_timeout_s(settings))
    state: RuntimeState | None = None
    while state is None:
        _let_end(directory, deadline)
        state = (
            _joined(directory, deadline) if directory.is_alive() else _begun(directory, deadline)
        )
    if as_json:
        print_json(_document(state))
        return
    print_fields([("url", state.url), ("admin key", state.admin_key_file), ("home", state.home)])


def down(timeout: Timeout = None, as_json: AsJson = False) -> None:
    """End everything in order; requests in work may end first."""
    settings = Settings.from_env()
    directory = RuntimeDirectory(settings.home)
    allowed_s = timeout or _stop_timeout_s(settings)
    was_alive = directory.is_alive()
    if was_alive:
        _end_daemon(directory, allowed_s)
    _end_remains(settings, directory)
    if as_json:
        print_json({"state": Phase.STOPPED, "was_running": was_alive})
    else:
        say("stopped" if was_alive else "nothing was running")


def status(as_json: AsJson = False) -> None:
    """Say what runs. Exit status 0: running, 3: stopped, 4: starting, stopping or degraded."""
    settings = Settings.from_env()
    state = _asked(RuntimeDirectory(settings.home).present())
    watch = _watch(settings, state)
    if as_json:
        watchdog = [dataclasses.asdict(item) for item in watch]
        print_json(_document(state) | {"watchdog": watchdog})
    else:
        _print(state, watch)
    match state.state:
        case Phase.RUNNING:
            return
        case Phase.STOPPED:
            raise typer.Exit(STATUS_STOPPED)
        case _:
            raise typer.Exit(STATUS_UNSETTLED)


# Up


def _start_timeout_s(settings: Settings) -> float:
    return 2 * settings.server_start_timeout_s + 2 * settings.ray_start_timeout_s


def _let_end(directory: RuntimeDirectory, deadline: float) -> None:
    """Wait for a daemon that is just ending."""
    while directory.present().state is Phase.STOPPING:
        if time.monotonic() > deadline:
            raise CommandError(
                "the runtime is stopping and does not come to an end", "`tenancy down`"
            )
        time.sleep(_POLL_INTERVAL_S)


def _joined(directory: RuntimeDirectory, deadline: float) -> RuntimeState | None:
    """What runs already, or what someone else starts just now; None when it has gone again."""
    state = _followed(directory, None, deadline)
    if state is not None:
        _check_settings(directory, state)
        note("already running" if state.state is Phase.RUNNING else f"already up, {state.state}")
    return state


def _check_settings(directory: RuntimeDirectory, state: RuntimeState) -> None:
    """Raise `CommandError` when what runs was started with other settings than these."""
    settings = Settings.from_env()
    # As the daemon that is started here would have them.
    settings = Settings.from_env(os.environ | _absolute(settings))
    found = differences(settings, settings_path(directory.home), state.url)
    if found:
        raise CommandError(
            f"the runtime runs already at {state.url}, with other settings: {'; '.join(found)}",
            "`tenancy down` and then `tenancy up` takes these; to leave it as it is, set the "
            "variables, and what their files say, as they are there",
        )


def _begun(directory: RuntimeDirectory, deadline: float) -> RuntimeState | None:
    """What a daemon of ours has started; None when someone else was faster."""
    daemon = _spawn(Settings.from_env(), directory)
    try:
        return _followed(directory, daemon, deadline)
    except (KeyboardInterrupt, CommandError):
        _end(daemon)
        raise


def _spawn(settings: Settings, directory: RuntimeDirectory) -> subprocess.Popen[bytes]:
    """Start the daemon in a session of its own, so that it outlives this terminal."""
    with (directory.log / "daemon.out").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tenancy.data_isolation.serve.daemon"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory.work,
            # The daemon works elsewhere, so what was relative to here must not be any more.
            env=os.environ | _absolute(settings),
            start_new_session=True,
        )


def _absolute(settings: Settings) -> dict[str, str]:
    found = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if isinstance(value, Path):
            found[f"TENANCY_{item.name.upper()}"] = str(value)
    if settings.jwt_jwks is not None and "://" not in settings.jwt_jwks:
        found["TENANCY_JWT_JWKS"] = str(Path(settings.jwt_jwks).expanduser().absolute())
    return found


def _followed(
    directory: RuntimeDirectory, daemon: subprocess.Popen[bytes] | None, deadline: float
) -> RuntimeState | None:
    """Tell what a daemon does until it runs.

    `daemon` is ours; None = whoever holds the lock. Returns None when there is nobody to follow
    any more, and nothing has failed. Raises `CommandError` when the start has.
    """
    told = ""
    while True:
        ended = daemon is not None and daemon.poll() is not None
        state = directory.present() if daemon is None else directory.read()
        if state is not None and (daemon is None or _is_of(state, daemon)):
            if state.detail and state.detail != told:
                told = state.detail
                note(f"{told} ...")
            if state.state in (Phase.RUNNING, Phase.DEGRADED):
                return state
            if state.state is Phase.STOPPED and daemon is None and state.error is None:
                return None
            if state.state is Phase.STOPPED and (ended or daemon is None):
                raise _failed(directory, state.error)
        if ended and daemon is not None:
            if daemon.returncode == STATUS_OTHER:
                return None
            raise _failed(directory, None)
        if time.monotonic() > deadline:
            raise CommandError(
                f"the runtime did not start in time (it was {told or 'beginning'})",
                f"look at {directory.log}/daemon.log, or give it more time with --timeout",
            )
        time.sleep(_POLL_INTERVAL_S)


def _is_of(state: RuntimeState, daemon: subprocess.Popen[bytes]) -> bool:
    """Whether a state was written by this daemon, and not by one before it."""
    return state.daemon is not None and state.daemon.pid == daemon.pid


def _failed(directory: RuntimeDirectory, error: str | None) -> CommandError:
    hint = f"the log is {directory.log}/daemon.log"
    if error is not None:
        return CommandError(error, hint)
    last = _tail(directory.log / "daemon.out")
    return CommandError(f"the daemon ended at once{f': {last}' if last else ''}", hint)


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return " | ".join(lines[-1:])


def _end(daemon: subprocess.Popen[bytes]) -> None:
    """End a daemon whose start was given up; it ends what it has started."""
    if daemon.poll() is None:
        note("ending what was started ...")
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


# Down


def _stop_timeout_s(settings: Settings) -> float:
    return settings.drain_timeout_s + 2 * settings.server_start_timeout_s + _STOP_MARGIN_S


def _end_daemon(directory: RuntimeDirectory, timeout_s: float) -> None:
    process = _daemon(directory)
    told = ""
    for number, allowed_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, _LEFTOVER_TIMEOUT_S)):
        process.signal(number)
        deadline = time.monotonic() + allowed_s
        while directory.is_alive() and process.is_alive():
            state = directory.read()
            if state is not None and state.detail and state.detail != told:
                told = state.detail
                note(f"{told} ...")
            if time.monotonic() > deadline:
                note("it does not end in time and is ended by force")
                break
            time.sleep(_POLL_INTERVAL_S)
        else:
            return
    raise CommandError(f"the daemon (process {process.pid}) does not end")


def _daemon(directory: RuntimeDirectory) -> ProcessIdentity:
    found = directory.daemon()
    if found is not None:
        return found
    state = directory.read()
    if state is not None and state.daemon is not None and state.daemon.is_alive():
        return state.daemon
    raise CommandError(
        "the daemon lives and cannot be seen from here",
        "run this as the user who ran `tenancy up`, in the same container",
    )


def _end_remains(settings: Settings, directory: RuntimeDirectory) -> None:
    """End what a daemon that was killed has left behind."""
    if not directory.run.is_dir():
        return
    if not directory.lock.try_take():
        raise CommandError("another `tenancy up` has just begun", "`tenancy status` says more")
    try:
        left = directory.end_leftovers(_LEFTOVER_TIMEOUT_S)
        if left:
            raise SetupError(f"these processes do not end: {[item.pid for item in left]}")
        directory.remove_short_directories()
        # Imported late: it loads the drivers of the servers.
        from tenancy.data_isolation.serve.data_plane import shut_down_servers

        shut_down_servers(settings)
        state = directory.read()
        if state is not None and state.state is not Phase.STOPPED:
            directory.write(RuntimeState(state=Phase.STOPPED, home=str(settings.home)))
    finally:
        directory.lock.release()


# Status


def _asked(state: RuntimeState) -> RuntimeState:
    """The state, and whether what runs is ready as well."""
    if state.state is not Phase.RUNNING or state.url is None:
        return state
    try:
        status, body = state.endpoint().ask("/readyz", _READY_TIMEOUT_S)
        said = _unready(body)
        if status == HTTPStatus.OK and not said:
            return state
    except TenancyError as error:
        said = error.detail
    except OSError as error:
        said = f"the HTTP endpoint does not answer: {error}"
    return dataclasses.replace(state, state=Phase.DEGRADED, detail=said)


def _unready(answer: bytes) -> str:
    """What does not answer, as `/readyz` tells it."""
    try:
        checks = json.loads(answer)["checks"]
        return "; ".join(f"{name}: {text}" for name, text in checks.items() if text != "ok")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the HTTP endpoint is not ready"


def _document(state: RuntimeState) -> dict[str, Any]:
    found = dataclasses.asdict(state)
    daemon = found.pop("daemon")
    return found | {"pid": None if daemon is None else daemon["pid"]}


def _watch(settings: Settings, state: RuntimeState) -> list[WatchState]:
    """What the watchdogs do; nothing of a runtime that does not run."""
    if state.state not in (Phase.RUNNING, Phase.DEGRADED):
        return []
    # Imported late: it loads what the metrics are made with.
    from tenancy.data_isolation.serve.watchdog_report import report_path, watch_states

    return watch_states(report_path(settings.home))


def _print(state: RuntimeState, watch: Sequence[WatchState]) -> None:
    fields = [
        ("state", state.state.value),
        ("detail", state.detail or None),
        ("error", state.error),
        ("url", state.url),
        ("signed by", state.tls_ca_file),
        ("admin key", state.admin_key_file),
        ("PostgreSQL", _without_password(state.postgres_dsn)),
        ("Redis", _without_password(state.redis_url)),
        ("Ray", state.ray_address),
        ("logs", state.log_directory),
        ("home", state.home),
    ]
    for item in watch:
        of_server = f"{item.server}: " if item.server else ""
        fields.append(("watchdog", f"{of_server}{item.problem or item.state}"))
        if item.remedy is not None:
            fields.append(("what to do", item.remedy))
    print_fields([(name, value) for name, value in fields if value is not None])


def _without_password(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = f"{name}{colon}{'***' if colon else ''}{at}{place}"
    return urlunsplit(parts._replace(netloc=shown, query=""))
