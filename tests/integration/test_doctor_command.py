"""`tenancy doctor` where nothing runs: it starts the embedded server, looks, mends and accepts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tenancy.data_isolation.core import IsolationLevel, Settings, TenantContext
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.serve.cli import run
from tenancy.data_isolation.serve.runtime_state import RuntimeDirectory

_KEYS = {
    "name",
    "result",
    "detail",
    "remedy",
    "check",
    "severity",
    "server",
    "database",
    "subject",
    "problem",
    "statements",
    "by_hand",
}
_BREAKS = (
    "alter role tenancy_rows bypassrls",
    "create or replace function tenancy.tenant() returns bigint language sql as 'select 1::bigint'",
    "select lo_create(0)",
    "create role stranger login",
)

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(
    request: pytest.FixtureRequest,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Doctor:
    """The command in a home of its own; what it prints as JSON."""
    if request.config.getoption("--postgres-bin"):
        pytest.skip("the embedded server is of one version")
    monkeypatch.setenv("TENANCY_HOME", str(home))
    # Another runtime may have the usual one.
    monkeypatch.setenv("TENANCY_HTTP_PORT", "0")

    def called(*arguments: str, status: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        assert run(["doctor", "--json", *arguments]) == status
        document: dict[str, Any] = json.loads(capfd.readouterr().out)
        assert document["ok"] is (status == 0 or "--strict" in arguments)
        assert all(set(check) == _KEYS for check in document["checks"])
        return document

    return called


def of(document: dict[str, Any], result: str) -> set[str]:
    """The checks of servers that went so, without the machine's."""
    return {
        item["name"] for item in document["checks"] if item["result"] == result and item["check"]
    }


def _calls_functions(document: dict[str, Any]) -> bool:
    return any(item["name"].startswith("binding") for item in document["checks"])


def detail(document: dict[str, Any], name: str) -> str:
    (found,) = [item["detail"] for item in document["checks"] if item["name"] == name]
    return str(found)


async def _set_up(settings: Settings) -> None:
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_a", "create table a (id integer primary key)")
        await engine.create_tenant(TenantContext(tenant_id="acme"), level=IsolationLevel.SCHEMA)


async def _break(dsn: str, database: str) -> None:
    connection = await asyncpg.connect(dsn, database=database)
    for statement in _BREAKS:
        await connection.execute(statement)
    await connection.close()


@contextmanager
def _running(settings: Settings) -> Iterator[str]:
    """The embedded server, which the doctor then finds running and leaves so; its DSN."""
    with asyncio.Runner() as runner:
        embedded = EmbeddedPostgres(settings)
        try:
            yield runner.run(embedded.start()).dsn
        finally:
            runner.run(embedded.stop())


@pytest.mark.timeout(180)
def test_an_installation_at_rest_is_looked_at_mended_and_accepted(
    doctor: Doctor,
    home: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert detail(doctor(), "servers") == "nothing runs, so they were not looked at"
    settings = Settings(home=home)
    asyncio.run(_set_up(settings))

    sound = doctor()
    assert of(sound, "fail") == of(sound, "warn") == set()
    assert "the first look" in detail(sound, "drift")
    assert _calls_functions(sound)
    assert not RuntimeDirectory(home).is_alive()

    with _running(settings) as dsn:
        assert "nothing changed since" in detail(doctor(), "drift")
        _check_replicas(doctor, home / "replicas.toml", monkeypatch)
        asyncio.run(_break(dsn, settings.database))
        broken = doctor(status=1)
        assert of(broken, "fail") == {"roles", "functions"}
        # A function that somebody replaced is not called by the admin.
        assert not _calls_functions(broken)
        assert of(broken, "warn") == {"ways out", "drift"}
        _check_text(capfd)

        # Nobody can be asked here; then what SQL can is mended, and what would lose data is not.
        assert run(["doctor", "--mend"]) == 2
        mended = doctor("--mend", "--yes")
        names = [item["detail"] for item in mended["checks"] if item["name"] == "mended"]
        assert len(names) == 2
        assert "role tenancy_rows has BYPASSRLS" in names
        assert of(mended, "warn") == {"ways out", "drift"}
        doctor("--strict", status=1)

        assert detail(doctor("--accept"), "drift").startswith("1 change accepted")
        _forge(home)
        (forged,) = [item for item in doctor()["checks"] if item["name"] == "drift"]
        assert forged["result"] == "warn"
        assert "was not written by this installation" in forged["detail"]
        doctor("--accept")
        assert of(doctor(), "warn") == {"ways out"}


def _check_replicas(doctor: Doctor, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many processes as there can be have their connections."""
    monkeypatch.setenv("TENANCY_HTTP_REPLICAS_FILE", str(file))
    file.write_text("[autoscaling_config]\nmax_replicas = 9\ntarget_ongoing_requests = 5\n")
    assert "for each of 9 processes that answer HTTP" in detail(doctor(), "settings")
    file.write_text("[autoscaling_config]\n")
    wrong = doctor(status=1)
    assert "max_replicas" in detail(wrong, "replicas")
    assert detail(wrong, "settings") == "none that is dangerous"
    monkeypatch.delenv("TENANCY_HTTP_REPLICAS_FILE")


def _check_text(capfd: pytest.CaptureFixture[str]) -> None:
    """As people read it: lines of bearable length, and no whole function."""
    assert run(["doctor"]) == 1
    text = capfd.readouterr().out
    assert "fail  functions       function tenancy.tenant was replaced" in text
    assert "current_setting('tenancy.binding'" not in text
    assert all(len(line) < 600 for line in text.splitlines())


def _forge(home: Path) -> None:
    """Somebody writes a record of his own."""
    (record,) = (home / "doctor").iterdir()
    record.write_text(record.read_text().replace('"seal": "', '"seal": "0'))
