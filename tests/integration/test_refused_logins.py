"""A tenant whose login PostgreSQL lets in no more: what it is told, what the operator is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.doctoring import broken, mend_all
from support.engines import ask, make_tenant, opened
from support.http_api import MakeApi
from support.install import Install

from tenancy.data_isolation.core.errors import LoginRefusedError
from tenancy.data_isolation.core.types import IsolationLevel, Operation, Placement, Tenant
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.session_key import SessionKey

COUNT = "select count(*) from users"
ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
#: What was done behind the runtime's back, what PostgreSQL says then, and whether SQL mends it.
BREAKS = {
    "nologin": ('alter role "{role}" nologin', SCHEMA, "28000", True),
    "nologin-database": ('alter role "{role}" nologin', DATABASE, "28000", True),
    "nologin-rows": ("alter role tenancy_rows nologin", ROW, "28000", True),
    "password": ("alter role \"{role}\" password 'mine'", SCHEMA, "28P01", True),
    "dropped": ('drop owned by "{role}";; drop role "{role}"', SCHEMA, "28P01", False),
    "no-connect": ('revoke connect on database {database} from "{role}"', SCHEMA, "42501", True),
}


def placed(tenant: Tenant) -> Placement:
    assert tenant.placement is not None
    return tenant.placement


async def _break(install: Install, text: str, placement: Placement) -> None:
    async with install.connected() as admin:
        for statement in text.split(";;"):
            await admin.execute(statement.format(role=placement.role, database=placement.database))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[SessionKey]:
    """The sessions that were tried to be opened."""
    tried: list[SessionKey] = []
    usual = Connection.open.__func__  # type: ignore[attr-defined]

    async def counted(cls: type[Connection], key: SessionKey, **rest: Any) -> Connection:
        tried.append(key)
        found: Connection = await usual(cls, key, **rest)
        return found

    monkeypatch.setattr(Connection, "open", classmethod(counted))
    return tried


async def _check_refused(engine: Engine, name: str, sqlstate: str) -> LoginRefusedError:
    """Whatever is asked, the answer is that the login is refused."""
    with pytest.raises(LoginRefusedError) as caught:
        await ask(engine, name, COUNT)
    told = caught.value
    assert (told.status, told.retryable, told.sqlstate) == (503, False, sqlstate)
    assert "tenancy doctor" in told.detail
    for atomic in (True, False):
        with pytest.raises(LoginRefusedError):
            await engine.execute_batch(name, [Operation(query=COUNT)] * 2, atomic=atomic)
    return told


async def test_a_login_that_is_refused_is_told_as_that_and_mended(
    install: Install,
    attempts: list[SessionKey],
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
):
    places: dict[str, Placement] = {}
    async with opened(install) as engine:
        for name, (_, level, _, _) in BREAKS.items():
            places[name] = placed(await make_tenant(engine, name, level))
        await make_tenant(engine, "sound", SCHEMA)
    for name, (text, _, _, _) in BREAKS.items():
        await _break(install, text, places[name])
    async with opened(install, tables=False) as engine:
        for name, (_, _, sqlstate, _) in BREAKS.items():
            with subtests.test(name), caplog.at_level(logging.ERROR):
                attempts.clear()
                caplog.clear()
                told = await _check_refused(engine, name, sqlstate)
                # One operation and two batches: not eight attempts each.
                assert 2 * 3 <= len(attempts) <= 3 * 3
                assert not any(place.role in told.detail for place in places.values())
                (line,) = [line for line in caplog.messages if "is not served" in line]
                assert f"tenant {name} " in line
                assert places[name].role in line
        assert (await ask(engine, "sound", COUNT)).rows == [[3]]

        findings = await broken(install)
        for name, place in places.items():
            words = (place.role, f"tenant {name}")
            assert any(word in str(item) for item in findings for word in words), name
        assert await mend_all(install, findings) == []
        by_hand = {name for name, (*_, by_sql) in BREAKS.items() if not by_sql}
        for name in BREAKS.keys() - by_hand:
            assert (await ask(engine, name, COUNT)).rows == [[3]], name
        assert {item.subject for item in await broken(install)} == {
            f"tenant {name}" for name in by_hand
        }


async def test_the_answer_over_http_is_no_invitation_to_try_again(make_api: MakeApi):
    api = await make_api()
    await api.migrate()
    acme = await api.tenant("acme", "schema")
    placement = placed(await api.engine.tenant("acme"))
    async with api.engine.admin.session(placement.server) as admin:
        await admin.execute(f'alter role "{placement.role}" nologin')

    answer = await acme.post("/v1/tenants/acme/query", json={"query": COUNT})

    problem = answer.json()
    assert (answer.status_code, problem["retryable"]) == (503, False)
    assert problem["type"].endswith(":login-refused")
    assert "Retry-After" not in answer.headers
    assert placement.role not in answer.text
    batch = {"operations": [{"query": COUNT}]}
    assert (await acme.post("/v1/tenants/acme/batch", json=batch)).status_code == 503

    async with api.engine.admin.session(placement.server) as admin:
        await admin.execute(f'alter role "{placement.role}" login')
    answer = await acme.post("/v1/tenants/acme/query", json={"query": COUNT})
    assert answer.json()["rows"] == [[0]]
