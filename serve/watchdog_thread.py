"""The watchdogs of all servers, in a thread of the daemon with an event loop of its own.

In the daemon, because that has nothing else to do: where requests are answered, looks would come
late just when it matters; and the daemon lives on when Ray is lost. Several machines may each have
a daemon: of their watchdogs one acts for each server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenancy.data_isolation.core import ServerConfig, Settings
from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.watchdog import Watchdog
from tenancy.data_isolation.serve.watchdog_report import report_path, write_reports

_log = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 1.0
_STOP_TIMEOUT_S = 15.0


class WatchdogThread:
    """Watches servers from `start` to `stop`."""

    def __init__(
        self, settings: Settings, master_key: MasterKey, servers: Sequence[ServerConfig]
    ) -> None:
        # Each watchdog keeps one connection, and asks the catalog by another.
        self._settings = dataclasses.replace(
            settings, admin_connections_max=2 * len(servers) + settings.admin_connections_max
        )
        self._master_key = master_key
        self._servers = tuple(servers)
        self._path: Path = report_path(settings.home)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch. Does not wait for the servers."""
        self._thread.start()
        self._ready.wait(_STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End the watch, and wait until logins have back what they may have. Blocks."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
                loop.call_soon_threadsafe(stopping.set)
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception:
            _log.exception("the watchdogs have ended")
            # Told at once, and not only when the last report has become old.
            ended = {"state": "not watching: it failed and has ended"}
            self._write([{"server": server.name} | ended for server in self._servers])
        finally:
            self._ready.set()

    async def _watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = stopping = asyncio.Event()
        self._ready.set()
        admin = AdminConnections(settings=self._settings, servers=self._servers, keep_warm=True)
        watchdogs = [
            Watchdog(
                settings=self._settings,
                master_key=self._master_key,
                admin=admin,
                server=ServerName(server.name),
            )
            for server in self._servers
        ]
        tasks = [asyncio.create_task(watchdog.run()) for watchdog in watchdogs]
        while not stopping.is_set():
            self._tell(watchdogs)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_INTERVAL_S):
                    await stopping.wait()
        for watchdog in watchdogs:
            watchdog.stop()
        await asyncio.gather(*tasks)
        self._tell(watchdogs)
        await admin.close()

    def _tell(self, watchdogs: Sequence[Watchdog]) -> None:
        self._write([watchdog.report.plain() for watchdog in watchdogs])

    def _write(self, reports: Sequence[Mapping[str, Any]]) -> None:
        try:
            write_reports(self._path, reports)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)
