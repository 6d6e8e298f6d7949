"""A trial: clients work on tenants while something happens to them, then their histories are
checked."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from support.history.call import Call
from support.history.check import check
from support.history.executor import Executor
from support.history.figures import Figures, figures_of
from support.history.nemesis import Nemesis, nothing
from support.history.pace import pause
from support.history.report import Anomaly, Report
from support.history.workload import Plan, Workload

#: Values of one tenant; the next one's begin behind them.
_VALUES_PER_TENANT: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of a trial. Times are of CLOCK_MONOTONIC."""

    began_ns: int
    ended_ns: int
    histories: dict[str, list[Call]]
    reports: dict[str, Report]

    @property
    def anomalies(self) -> list[Anomaly]:
        return [item for report in self.reports.values() for item in report.anomalies]

    def figures(self, tenant: str, began_ns: int, ended_ns: int) -> Figures:
        """How a tenant was served between two times, as during one move."""
        return figures_of(self.histories[tenant], began_ns, ended_ns)

    def __str__(self) -> str:
        return "\n".join(map(str, self.reports.values()))


async def run_trial(
    executor: Executor,
    tenants: Sequence[str],
    *,
    seconds: float,
    nemesis: Nemesis = nothing,
    nemesis_s: float = 60.0,
    plan: Plan | None = None,
    others: Sequence[Executor] = (),
) -> Trial:
    """Let clients work on the tenants for `seconds`, and longer while the nemesis is at work.

    `statements.TABLES` must be applied, and what the tenants have in these tables is removed first.
    When the time is over the nemesis is told, and may take `nemesis_s` more, during which clients
    go on; then they stop, everything is read, and the histories are checked. An error of the
    nemesis ends the trial and is raised. Clients are spread over the executor and `others`, which
    work on the same tenants, as several processes of a runtime do.
    """
    plan = plan or Plan()
    workloads = [
        Workload(
            (executor, *others),
            str(tenant),
            dataclasses.replace(plan, first_value=plan.first_value + index * _VALUES_PER_TENANT),
        )
        for index, tenant in enumerate(tenants)
    ]
    for workload in workloads:
        await workload.prepare()
    began_ns = time.monotonic_ns()
    await _together(workloads, nemesis, seconds, nemesis_s)
    ended_ns = time.monotonic_ns()
    for workload in workloads:
        await workload.read_everything()
    return Trial(
        began_ns=began_ns,
        ended_ns=ended_ns,
        histories={item.tenant: item.calls for item in workloads},
        reports={
            item.tenant: check(
                item.tenant, item.calls, item.plan.opening, began_ns=began_ns, ended_ns=ended_ns
            )
            for item in workloads
        },
    )


async def _together(
    workloads: Sequence[Workload], nemesis: Nemesis, seconds: float, nemesis_s: float
) -> None:
    over = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            for workload in workloads:
                group.create_task(workload.run())
            acting = group.create_task(nemesis(over))
            await pause(asyncio.Event(), seconds)
            over.set()
            _, late = await asyncio.wait([acting], timeout=nemesis_s)
            if late:
                raise TimeoutError(f"the nemesis had not ended {nemesis_s} s after it was told")
            for workload in workloads:
                workload.stop()
    except ExceptionGroup as several:
        # The first error has ended the others.
        raise several.exceptions[0] from None
