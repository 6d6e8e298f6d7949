"""Measures what tenants' operations take, tells what is so far, and keeps windows that have ended.

A process that is killed loses the window that it was in. What cannot be written is given up and
counted: measuring never disturbs operations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.measured_windows import MeasuredWindows, window_end_s
from tenancy.data_isolation.engine.operation_figures import (
    Figures,
    LevelFigures,
    TopTenant,
    add_window,
    busiest_tenants,
)
from tenancy.data_isolation.engine.window_files import WindowFiles, WindowsLostError

_log = logging.getLogger(__name__)

#: How often old files are removed, and windows of tenants that the catalog has no more.
_TIDY_S: Final = 3_600.0
#: A wait is never shorter, however short windows are.
_WAIT_MIN_S: Final = 0.01


class Measurements:
    """Measures in one process. Belongs to one event loop. `start` begins, `close` ends."""

    def __init__(
        self, settings: Settings, catalog: Catalog, process: str, clock: Clock | None = None
    ) -> None:
        """`process` is a word for file names."""
        self._clock = clock or SystemClock()
        self.windows = MeasuredWindows(settings, self._clock)
        self._length_s = settings.measurement_window_s
        self._top_max = settings.metrics_top_tenants_max
        self._catalog = catalog
        self._files = WindowFiles(settings, process)
        #: One at a time, in their order.
        self._writing = asyncio.Lock()
        self._levels: dict[str, LevelFigures] = {}
        self._top: tuple[TopTenant, ...] = ()
        self._written = 0
        self._lost = 0
        self._tidied_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Cut windows from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def cut(self) -> None:
        """End the present window, and keep it."""
        window = self.windows.cut()
        add_window(self._levels, window)
        self._top = tuple(busiest_tenants(window, self._top_max))
        await self._do(lambda: self._files.write(window), told=True)

    async def tidy(self) -> None:
        """Remove what is too old or too much, and windows of tenants that there are no more."""
        now = self._clock.now()
        await self._do(lambda: self._files.prune(now))
        try:
            numbers = await asyncio.to_thread(self._files.tenants)
            known = await self._catalog.known_tenants(list(numbers))
        except (TenancyError, WindowsLostError) as error:
            _log.warning("measured windows of erased tenants could not be looked for: %s", error)
            return
        await self._forget(numbers - known)

    async def forget(self, tenant_no: TenantNo) -> None:
        """Keep nothing of a tenant that is erased. What cannot be done now is done by `tidy`."""
        # Sums name nobody, and what was told to Prometheus must not become less.
        add_window(self._levels, self.windows.forget(tenant_no))
        self._top = ()
        await self._forget({tenant_no})

    def figures(self) -> Figures:
        """What all operations came to, those of the present window included."""
        levels = {name: known.copy() for name, known in self._levels.items()}
        add_window(levels, self.windows.present())
        return Figures(
            levels=levels,
            windows_written=self._written,
            windows_lost=self._lost,
            top=self._top,
        )

    async def close(self) -> None:
        """Keep what was measured of the present window, and measure no more."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        await self.cut()

    # Parts

    async def _run(self) -> None:
        while True:
            left_s = window_end_s(self._clock.now(), self._length_s)
            await asyncio.sleep(max(left_s, _WAIT_MIN_S))
            await self._once()

    async def _once(self) -> None:
        try:
            await self.cut()
            now_s = self._clock.monotonic_s()
            if self._tidied_s is None or now_s - self._tidied_s >= _TIDY_S:
                self._tidied_s = now_s
                await self.tidy()
        except Exception:
            # Nobody awaits this task who could be told, and the next window may go better.
            _log.exception("measuring failed in a way that was not foreseen")

    async def _forget(self, numbers: Iterable[TenantNo]) -> None:
        listed = sorted(numbers)
        await self._do(lambda: self._files.forget(listed))

    async def _do(self, work: Callable[[], Any], *, told: bool = False) -> None:
        """Do something with files, in a thread; `told` counts windows written and lost."""
        async with self._writing:
            try:
                done = await asyncio.to_thread(work)
            except WindowsLostError as error:
                self._lost += told
                _log.warning("measured windows: %s", error)
            else:
                self._written += told and bool(done)
