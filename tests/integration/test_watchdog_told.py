"""That nobody holds tenants to their limits from outside is told by status and doctor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.install import SERVER, Install
from support.running_api import RunningApi
from support.watching import until, until_it_is

from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.serve.doctor import check_watchdogs
from tenancy.data_isolation.serve.watchdog_report import read_reports, report_path, write_reports
from tenancy.data_isolation.serve.watchdog_thread import WatchdogThread


@asynccontextmanager
async def _thread(
    running: RunningApi, install: Install, server: ServerConfig
) -> AsyncIterator[WatchdogThread]:
    """The daemon's thread, with its report where the command looks for it."""
    settings = dataclasses.replace(install.settings, home=running.home)
    thread = WatchdogThread(settings, install.master_key, [server])
    thread.start()
    try:
        yield thread
    finally:
        await asyncio.to_thread(thread.stop)


def _states(path: Path) -> list[str]:
    return [str(item["state"]) for item in read_reports(path)]


async def _told(running: RunningApi, state: str) -> tuple[str, str]:
    """Problem and remedy, after a look whether all say the same: text and JSON, both commands."""
    (item,) = (await running.run("status", "--json")).json()["watchdog"]
    assert item["state"].startswith(state)
    # How long it has been silent is more with each look.
    problem = _without_numbers(item["problem"])
    text = (await running.run("status")).out
    assert problem[:60] in _without_numbers(text)
    assert item["remedy"] in text
    (check,) = await _checks(running, status=1)
    assert check["result"] == "fail"
    assert problem[:60] in _without_numbers(check["detail"])
    assert item["remedy"] == check["remedy"]
    assert problem[:60] in _without_numbers((await running.run("doctor", status=1)).out)
    return item["problem"], item["remedy"]


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", text)


async def _checks(running: RunningApi, status: int) -> list[dict[str, Any]]:
    document = (await running.run("doctor", "--json", status=status)).json()
    return [item for item in document["checks"] if item["name"] == "watchdog"]


async def _is_told_well(running: RunningApi) -> bool:
    """Whether all say that it watches; on a machine that is busy a look may just be late."""
    (item,) = (await running.run("status", "--json")).json()["watchdog"]
    text = (await running.run("status")).out
    (check,) = await _checks(running, status=0)
    if any("late" in told for told in (item["state"], text, check["detail"])):
        return False
    assert item == {"server": SERVER, "state": "acting", "problem": None, "remedy": None}
    assert f"{SERVER}: acting" in text
    assert (check["result"], check["detail"]) == ("ok", f"server {SERVER}: acting")
    return True


async def test_a_watchdog_that_is_blind_silent_or_gone_is_told(
    running: RunningApi, install: Install
):
    path = report_path(running.home)
    problem, _ = await _told(running, "unknown")
    assert "no watchdog has written" in problem

    async with _thread(running, install, install.server_config) as thread:
        await until(lambda: _states(path) == ["acting"])
        await until_it_is(lambda: _is_told_well(running))

        # The thread dies.
        loop = thread._loop
        assert loop is not None
        loop.call_soon_threadsafe(loop.stop)
        await until(lambda: [text[:3] for text in _states(path)] == ["not"])
        problem, remedy = await _told(running, "not watching")
        assert "it failed and has ended" in problem
        assert "tenancy down" in remedy

    # It died so that it could not even say so.
    os.utime(path, (0, 0))
    problem, _ = await _told(running, "silent")
    assert "has told nothing for" in problem


async def test_an_admin_that_may_not_see_is_told_with_what_lets_it_see(
    running: RunningApi, install: Install
):
    path = report_path(running.home)
    dsn = install.server.dsn("postgres", "plain_watcher", "plain")
    async with install.connected() as admin:
        await admin.execute("create role plain_watcher login password 'plain'")
        await admin.execute(f'grant connect on database "{install.database}" to plain_watcher')
        try:
            async with _thread(running, install, ServerConfig(name=SERVER, dsn=dsn)):
                await until(lambda: [text[:5] for text in _states(path)] == ["blind"])
                problem, remedy = await _told(running, "blind")
                assert "may not see or end tenants' sessions" in problem
                _, _, statement = remedy.partition("run: ")
                await admin.execute(statement.partition(";")[0])
                await until(lambda: [text[:5] for text in _states(path)] != ["blind"])
        finally:
            await admin.execute("drop owned by plain_watcher")
            await admin.execute("drop role plain_watcher")


@pytest.mark.parametrize(
    ("state", "result"),
    [
        ("acting", "ok"),
        ("standby", "ok"),
        ("starting", "warn"),
        ("late: the last look ended 2 s ago", "warn"),
        ("not watching: the connection broke", "fail"),
        ("stopped", "fail"),
        ("of another release", "fail"),
    ],
)
def test_each_state_has_its_result(tmp_path: Path, state: str, result: str):
    path = report_path(tmp_path)
    write_reports(path, [{"server": SERVER, "state": state}])

    (check,) = check_watchdogs(path)

    assert check.result == result
    assert state in check.detail
    assert (check.remedy is None) is (result == "ok")
