"""API keys: what is kept of them, and when they stop being good."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.install import Install
from support.settable_clock import SettableClock

from tenancy.data_isolation.core.crypto import new_api_key
from tenancy.data_isolation.core.errors import (
    ConflictError,
    DiskFullError,
    InvalidInputError,
    NotFoundError,
    TenantNotFoundError,
    UnauthenticatedError,
)
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.types import Tenant, TenantContext, TenantStatus
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.engine.credentials import Credentials

ADMIN, TENANT = CredentialScope.ADMIN, CredentialScope.TENANT


@pytest.fixture
async def catalog(install: Install) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(
        settings=install.settings, master_key=install.master_key, server=install.server_config
    )
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def credentials(install: Install, catalog: Catalog, clock: SettableClock) -> Credentials:
    return Credentials(settings=install.settings, catalog=catalog, clock=clock)


@pytest.fixture
async def acme(catalog: Catalog) -> Tenant:
    return await catalog.add_tenant(TenantContext(tenant_id="acme"))


async def test_a_key_stands_for_the_tenant_it_was_made_for(credentials: Credentials, acme: Tenant):
    key = await credentials.create(TENANT, tenant_no=acme.tenant_no, label="ci")

    principal = await credentials.verify(key.text)

    assert principal.scope is TENANT
    assert (principal.tenant_no, principal.tenant_id) == (acme.tenant_no, "acme")
    assert principal.key_id == key.key_id


async def test_an_admin_key_stands_for_no_tenant(credentials: Credentials):
    principal = await credentials.verify((await credentials.create(ADMIN)).text)

    assert principal.scope is ADMIN
    assert principal.tenant_no is None
    assert principal.tenant_id is None


async def test_only_a_hash_is_stored(install: Install, credentials: Credentials):
    key = await credentials.create(ADMIN, label="x")
    async with install.connected() as admin:
        rows = await admin.fetch("select to_jsonb(k)::text from catalog.api_key k")

    secret = key.text.split("_", 2)[2]
    assert len(rows) == 1
    assert secret not in rows[0][0]
    assert secret not in repr(key)


@pytest.mark.parametrize("cached", [False, True])
async def test_every_key_that_is_not_right_is_refused_in_the_same_words(
    credentials: Credentials, cached: bool
):
    key = await credentials.create(ADMIN)
    if cached:
        await credentials.verify(key.text)
    refusals = set()
    for text in (
        "",
        "tk",
        "tk__",
        "x" * 10_000,
        "tk_" + "0" * 16 + "_" + "a" * 43,
        f"tk_{key.key_id}_" + "a" * 43,
        key.text[:-1],
        key.text + "a",
        key.text.upper(),
        f"tk_{key.key_id}_",
        "tk_" + "\x00" * 16 + "_a",
        "tk_" + "é" * 16 + "_a",
        "\ud800",
    ):
        with pytest.raises(UnauthenticatedError) as raised:
            await credentials.verify(text)
        refusals.add((str(raised.value), raised.value.args))
    assert len(refusals) == 1
    assert (await credentials.verify(key.text)).scope is ADMIN


async def test_a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere(
    install: Install, catalog: Catalog, credentials: Credentials, clock: SettableClock
):
    elsewhere = Credentials(settings=install.settings, catalog=catalog, clock=clock)
    key = await credentials.create(ADMIN)
    for where in (credentials, elsewhere):
        await where.verify(key.text)

    await credentials.revoke(key.key_id)

    with pytest.raises(UnauthenticatedError):
        await credentials.verify(key.text)
    assert install.settings.credential_cache_ms < 1_000
    clock.pass_s(install.settings.credential_cache_ms / 1_000)
    with pytest.raises(UnauthenticatedError):
        await elsewhere.verify(key.text)


async def test_a_key_expires_at_its_time_even_when_it_is_remembered(
    credentials: Credentials, clock: SettableClock
):
    key = await credentials.create(ADMIN, expires_at=clock.now() + timedelta(seconds=0.1))
    await credentials.verify(key.text)
    clock.pass_s(0.1)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            await credentials.verify(key.text)


async def _is_good(credentials: Credentials, text: str) -> bool:
    try:
        await credentials.verify(text)
    except UnauthenticatedError:
        return False
    return True


async def test_a_rotated_key_has_a_new_secret_and_the_old_one_is_dead_within_a_second_everywhere(
    install: Install, catalog: Catalog, credentials: Credentials, clock: SettableClock, acme: Tenant
):
    elsewhere = Credentials(settings=install.settings, catalog=catalog, clock=clock)
    old = await credentials.create(TENANT, tenant_no=acme.tenant_no, label="app")
    for where in (credentials, elsewhere):
        await where.verify(old.text)

    new, record = await credentials.rotate(old.key_id)

    assert new.text != old.text
    assert (new.key_id, record.key_id, record.label) == (old.key_id, old.key_id, "app")
    assert (record.rotated_at, record.previous_until) == (clock.now(), None)
    assert (await credentials.verify(new.text)).tenant_id == "acme"
    assert not await _is_good(credentials, old.text)
    clock.pass_s(install.settings.credential_cache_ms / 1_000)
    assert not await _is_good(elsewhere, old.text)
    assert await _is_good(elsewhere, new.text)


async def test_with_an_overlap_both_secrets_are_good_until_it_ends(
    credentials: Credentials, clock: SettableClock
):
    first = await credentials.create(ADMIN)
    second, record = await credentials.rotate(first.key_id, overlap_s=60)

    assert record.previous_until == clock.now() + timedelta(seconds=60)
    assert (await credentials.show(first.key_id)).previous_until == record.previous_until
    clock.pass_s(59.9)
    assert await _is_good(credentials, first.text)
    assert await _is_good(credentials, second.text)
    clock.pass_s(0.1)
    assert not await _is_good(credentials, first.text)
    assert await _is_good(credentials, second.text)


async def test_rotating_once_more_ends_an_overlap_and_so_does_revoking(credentials: Credentials):
    first = await credentials.create(ADMIN)
    second, _ = await credentials.rotate(first.key_id, overlap_s=60)
    third, _ = await credentials.rotate(first.key_id, overlap_s=60)

    good = [await _is_good(credentials, key.text) for key in (first, second, third)]
    await credentials.revoke(first.key_id)
    left = [await _is_good(credentials, key.text) for key in (first, second, third)]

    assert good == [False, True, True]
    assert left == [False, False, False]


async def test_no_secret_of_a_key_outlives_its_expiry(
    credentials: Credentials, clock: SettableClock
):
    old = await credentials.create(ADMIN, expires_at=clock.now() + timedelta(seconds=10))
    new, _ = await credentials.rotate(old.key_id, overlap_s=60)
    assert await _is_good(credentials, old.text)

    clock.pass_s(10)

    assert not await _is_good(credentials, old.text)
    assert not await _is_good(credentials, new.text)
    with pytest.raises(ConflictError):
        await credentials.rotate(old.key_id)


async def test_what_cannot_be_rotated_is_told_and_stays_as_it_was(credentials: Credentials):
    key = await credentials.create(ADMIN)
    for overlap_s in (-1.0, float("nan"), float("inf"), 604_801.0):
        with pytest.raises(InvalidInputError, match="TENANCY_CREDENTIAL_OVERLAP_MAX_S"):
            await credentials.rotate(key.key_id, overlap_s=overlap_s)
    for key_id in ("0" * 16, "nothing", "\x00"):
        with pytest.raises(NotFoundError):
            await credentials.rotate(key_id)
        with pytest.raises(NotFoundError):
            await credentials.show(key_id)
    assert await _is_good(credentials, key.text)
    await credentials.revoke(key.key_id)
    with pytest.raises(ConflictError):
        await credentials.rotate(key.key_id)


async def test_the_last_use_is_noted_of_a_good_key_only_and_not_at_each_use(
    install: Install, catalog: Catalog, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
):
    settings = dataclasses.replace(install.settings, credential_cache_ms=1)
    credentials = Credentials(settings=settings, catalog=catalog, clock=clock)
    key = await credentials.create(ADMIN)
    assert not await _is_good(credentials, f"tk_{key.key_id}_wrong")
    assert (await credentials.show(key.key_id)).last_used_at is None
    written = []
    write = catalog.pool.write

    async def counted(*arguments):
        written.append(arguments)
        return await write(*arguments)

    monkeypatch.setattr(catalog.pool, "write", counted)
    for _ in range(3):
        await credentials.verify(key.text)
        clock.pass_s(1)

    assert len(written) == 1
    assert (await credentials.show(key.key_id)).last_used_at is not None


async def test_a_use_that_cannot_be_noted_keeps_nobody_out(
    catalog: Catalog, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
):
    key = await credentials.create(ADMIN)

    async def full(*_):
        raise DiskFullError

    monkeypatch.setattr(catalog.pool, "write", full)

    assert await _is_good(credentials, key.text)


async def test_a_key_of_a_removed_tenant_is_refused(
    catalog: Catalog, credentials: Credentials, clock: SettableClock, acme: Tenant
):
    key = await credentials.create(TENANT, tenant_no=acme.tenant_no)
    await catalog.set_status(acme.tenant_no, TenantStatus.DELETING, expected=TenantStatus.CREATING)
    await catalog.remove_tenant(acme.tenant_no)

    with pytest.raises(UnauthenticatedError):
        await credentials.verify(key.text)


async def test_what_is_remembered_is_bounded(
    install: Install, catalog: Catalog, clock: SettableClock
):
    settings = dataclasses.replace(install.settings, credential_cache_entries=2)
    credentials = Credentials(settings=settings, catalog=catalog, clock=clock)
    keys = [await credentials.create(ADMIN) for _ in range(5)]
    for key in keys:
        await credentials.verify(key.text)

    assert len(credentials._verified) == 2


class SlowCatalog:
    """Counts the questions for keys; the first answer is held back until it is let go."""

    def __init__(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.questions = 0
        self.came = asyncio.Event()
        self.let_go = asyncio.Event()
        self._ask = catalog.pool.row
        monkeypatch.setattr(catalog.pool, "row", self._row)

    async def _row(self, *question: Any) -> Any:
        self.questions += 1
        first = self.questions == 1
        answer = await self._ask(*question)
        if first:
            self.came.set()
            await self.let_go.wait()
        return answer


@pytest.fixture
def slow(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> SlowCatalog:
    return SlowCatalog(catalog, monkeypatch)


async def test_requests_that_come_together_ask_the_catalog_once(
    credentials: Credentials, slow: SlowCatalog
):
    key = await credentials.create(ADMIN)

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(credentials.verify(key.text)) for _ in range(50)]
        await slow.came.wait()
        # One of them is not waited for any more: the others get their answer all the same.
        asking[0].cancel()
        slow.let_go.set()

    assert {task.result().key_id for task in asking[1:]} == {key.key_id}
    assert slow.questions == 1
    await credentials.verify(key.text)
    assert slow.questions == 1


async def test_a_key_that_is_not_good_is_refused_to_all_who_come_together(
    credentials: Credentials, slow: SlowCatalog
):
    slow.let_go.set()
    wrong = new_api_key().text

    refused = await asyncio.gather(
        *(credentials.verify(wrong) for _ in range(20)), return_exceptions=True
    )

    assert {type(error) for error in refused} == {UnauthenticatedError}
    assert slow.questions == 1


async def test_nobody_waits_for_a_question_that_was_asked_before_the_key_was_revoked(
    credentials: Credentials, slow: SlowCatalog
):
    key = await credentials.create(ADMIN)
    before = asyncio.create_task(credentials.verify(key.text))
    await slow.came.wait()

    await credentials.revoke(key.key_id)

    with pytest.raises(UnauthenticatedError):
        await credentials.verify(key.text)
    slow.let_go.set()
    await before
    with pytest.raises(UnauthenticatedError):
        await credentials.verify(key.text)


async def test_nobody_waits_for_a_question_that_is_older_than_an_answer_may_be(
    install: Install, credentials: Credentials, clock: SettableClock, slow: SlowCatalog
):
    key = await credentials.create(ADMIN)
    elsewhere = Credentials(settings=install.settings, catalog=credentials._catalog, clock=clock)
    before = asyncio.create_task(credentials.verify(key.text))
    await slow.came.wait()
    await elsewhere.revoke(key.key_id)

    clock.pass_s(install.settings.credential_cache_ms / 1_000)

    with pytest.raises(UnauthenticatedError):
        await credentials.verify(key.text)
    slow.let_go.set()
    await before


async def test_keys_are_listed_without_their_secrets(credentials: Credentials, acme: Tenant):
    own = await credentials.create(TENANT, tenant_no=acme.tenant_no, label="own")
    await credentials.create(ADMIN, label="admin")
    await credentials.revoke(own.key_id)

    everything = await credentials.list()
    (listed,) = await credentials.list(tenant_no=acme.tenant_no)

    assert {record.label for record in everything} == {"own", "admin"}
    assert listed.tenant_id == "acme"
    assert listed.revoked_at is not None
    first, second = sorted(record.key_id for record in everything)
    assert [record.key_id for record in await credentials.list(limit=1)] == [first]
    assert [record.key_id for record in await credentials.list(after=first)] == [second]


async def test_keys_that_make_no_sense_are_refused(
    credentials: Credentials, clock: SettableClock, acme: Tenant
):
    with pytest.raises(InvalidInputError):
        await credentials.create(TENANT)
    with pytest.raises(InvalidInputError):
        await credentials.create(ADMIN, tenant_no=acme.tenant_no)
    with pytest.raises(InvalidInputError, match="in the past"):
        await credentials.create(ADMIN, expires_at=clock.now())
    with pytest.raises(InvalidInputError, match="time zone"):
        await credentials.create(ADMIN, expires_at=datetime(2030, 1, 1))
    with pytest.raises(InvalidInputError, match="label"):
        await credentials.create(ADMIN, label="x" * 201)
    with pytest.raises(TenantNotFoundError):
        await credentials.create(TENANT, tenant_no=TenantNo(99))
    for key_id in ("0" * 16, "nothing", "\x00"):
        with pytest.raises(NotFoundError):
            await credentials.revoke(key_id)
