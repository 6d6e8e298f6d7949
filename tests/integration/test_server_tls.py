"""TLS to PostgreSQL: everything goes through it, and what is not as asked for is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.certificates import Authority, Pair
from support.engines import TABLES, ask, make_tenant
from support.install import SERVER, Install
from support.tls_front import Front, mute, server_context, watched

from tenancy.data_isolation.core.errors import (
    SettingError,
    StatementTimeoutError,
    TenancyError,
    TransportError,
)
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.strategies import DatabaseConfig, DatabaseLevelStrategy

CANARY = "canary-5c1e77d0"
SLOW = "select count(*) from generate_series(1, 3000000000) n"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def good(authority: Authority) -> Pair:
    return authority.issue("server", "localhost", "127.0.0.1")


@pytest.fixture
async def native(install: Install, authority: Authority, good: Pair) -> AsyncIterator[None]:
    """The server under test with TLS of its own."""
    data = install.server.directory / "data"
    owner = data.stat()
    for path, name in ((good.certificate, "tls.crt"), (good.key, "tls.key")):
        copy = data / name
        copy.touch(mode=0o600)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        _chown(copy, owner)
    authorities = data / "tls-ca.crt"
    authorities.write_bytes(authority.certificate.read_bytes())
    _chown(authorities, owner)
    async with install.connected() as admin:
        if not await _has_tls(admin):
            pytest.skip("these binaries of PostgreSQL are built without TLS")
        await _set(admin, ssl_cert_file="tls.crt", ssl_key_file="tls.key")
        await _set(admin, ssl_ca_file="tls-ca.crt", ssl="on")
        try:
            yield
        finally:
            for name in ("ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file"):
                await admin.execute(f"alter system reset {name}")
            await admin.execute("select pg_reload_conf()")


@asynccontextmanager
async def way(
    install: Install, authority: Authority, pair: Pair, clients: Path | None = None
) -> AsyncIterator[tuple[Front, ServerConfig]]:
    """A front that ends TLS with a certificate of choice, and the server by way of it."""
    async with watched(install.server.port, server_context(pair, clients)) as front:
        yield front, server_at(install, front, sslrootcert=authority.certificate)


def server_at(install: Install, front: Front, **options: Any) -> ServerConfig:
    dsn = install.server.admin_dsn.replace(f":{install.server.port}/", f":{front.port}/")
    return ServerConfig(name=SERVER, dsn=dsn, **({"sslmode": "verify-full"} | options))


async def test_every_connection_goes_through_tls(install, authority, good):
    async with way(install, authority, good) as (front, server):
        await use_everything(install, server)

        assert len(front.connections) > 8
        assert front.in_the_clear() == []
        assert not any(CANARY.encode() in sent for sent in front.connections)


async def test_without_tls_the_same_is_there_to_be_read(install):
    """What shows that the test before could fail."""
    async with watched(install.server.port) as front:
        await use_everything(install, server_at(install, front, sslmode="disable"))

        assert len(front.in_the_clear()) == len([sent for sent in front.connections if sent])
        assert any(CANARY.encode() in sent for sent in front.connections)
        assert any(sent[4:8] == bytes.fromhex("04d2162e") for sent in front.connections)


async def test_the_servers_own_tls_serves_everything(install, authority, native):
    async with watched(install.server.port) as front:
        server = server_at(install, front, sslrootcert=authority.certificate)
        await use_everything(install, server)

        assert front.in_the_clear() == []
        async with engine_at(install, server), install.connected() as admin:
            plain = await admin.fetchval(
                "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)"
                " where application_name like 'tenancy%' and not ssl"
            )
            assert plain == 0


async def use_everything(install: Install, server: ServerConfig) -> None:
    """Sessions of every kind: admin, catalog, tenants of each level, and a cancellation."""
    config = EngineConfig(servers=(server,), settings=install.settings)
    async with await Engine.open(config) as engine:
        await engine.apply_migration("0001_users", TABLES)
        for level in IsolationLevel:
            name = f"{level}-tenant"
            await make_tenant(engine, name, level)
            added = await ask(
                engine, name, "insert into plans (id, name) values (1, $1) returning name", CANARY
            )
            assert added.rows == [[CANARY]]
            many = await ask(engine, name, "select repeat('x', 1000) from generate_series(1, 5000)")
            assert len(many.rows) == 5_000
        with pytest.raises(StatementTimeoutError):
            await ask(engine, "row-tenant", SLOW, deadline_s=0.2)
        # The session that was cancelled is in order.
        assert (await ask(engine, "row-tenant", "select 1")).rows == [[1]]


@asynccontextmanager
async def engine_at(install: Install, server: ServerConfig) -> AsyncIterator[Engine]:
    async with await Engine.attach(
        EngineConfig(servers=(server,), settings=install.settings)
    ) as engine:
        yield engine


async def refusal(install: Install, server: ServerConfig) -> TenancyError:
    """The error of an attempt to open the engine, which shows nothing secret."""
    settings = dataclasses.replace(install.settings, connect_timeout_s=2.0)
    config = EngineConfig(servers=(server,), settings=settings)
    with pytest.raises(TenancyError) as caught:
        async with asyncio.timeout(20):
            await Engine.open(config)
    assert install.server.password not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


BAD: dict[str, tuple[Callable[[Authority], Pair], str]] = {
    "expired": (lambda a: a.issue("old", "127.0.0.1", days=-1), "has expired; renew it"),
    "wrong-host": (lambda a: a.issue("other", "db.example.com"), "is for another host"),
    "self-signed": (lambda a: a.issue_self_signed("alone", "127.0.0.1"), "is self-signed"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_certificate_that_is_not_good_is_refused(install, authority, kind):
    make, text = BAD[kind]
    async with way(install, authority, make(authority)) as (front, server):
        error = await refusal(install, server)

        assert isinstance(error, TransportError)
        assert text in str(error)
        assert front.in_the_clear() == []
        # And not later either, by a session of a tenant or of the catalog.
        with pytest.raises(TransportError, match=text):
            await Engine.attach(EngineConfig(servers=(server,), settings=install.settings))


async def test_a_certificate_of_another_authority_is_refused(install, authority, good, tmp_path):
    other = Authority(tmp_path, "other-authority")
    async with way(install, other, good) as (_, server):
        assert "is not signed by those that are trusted" in str(await refusal(install, server))
        system = dataclasses.replace(server, sslrootcert=None)
        assert "is not signed by those that are trusted" in str(await refusal(install, system))
        # `verify-ca` does not look at the name, `require` at nothing, when nothing else is said.
        anyone = dataclasses.replace(server, sslmode="require", sslrootcert=None)
        async with engine_at(install, anyone):
            pass


async def test_verify_ca_takes_another_host_name(install, authority):
    pair = authority.issue("elsewhere", "db.example.com")
    async with way(install, authority, pair) as (_, server):
        loose = dataclasses.replace(server, sslmode="verify-ca")
        async with engine_at(install, loose):
            pass


async def test_a_revoked_certificate_is_refused(install, authority, good, tmp_path):
    revoked = authority.issue("revoked", "127.0.0.1")
    crl = authority.revoke(revoked)
    async with way(install, authority, revoked) as (_, server):
        listed = dataclasses.replace(server, sslcrl=crl)
        assert "was revoked" in str(await refusal(install, listed))
    async with way(install, authority, good) as (_, server):
        listed = dataclasses.replace(server, sslcrl=crl)
        async with engine_at(install, listed):
            pass


async def test_an_older_version_of_tls_is_refused(install, authority, good):
    async with way(install, authority, good) as (_, server):
        newest = dataclasses.replace(server, ssl_min_protocol_version="TLSv1.3")
        async with engine_at(install, newest):
            pass
    context = server_context(good)
    context.maximum_version = context.maximum_version.TLSv1_2
    async with watched(install.server.port, context) as front:
        newest = server_at(
            install,
            front,
            sslrootcert=authority.certificate,
            ssl_min_protocol_version="TLSv1.3",
        )
        assert "no TLS version that is allowed" in str(await refusal(install, newest))
        assert front.in_the_clear() == []


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_never_used_without(install, authority, mode):
    async with watched(install.server.port) as front:
        server = server_at(install, front, sslmode=mode, sslrootcert=authority.certificate)
        error = await refusal(install, server)

        assert isinstance(error, TransportError)
        assert "does not speak TLS, which is asked for; switch it on" in str(error)
        # It was asked, and told nothing else.
        assert {bytes(sent) for sent in front.connections} == {bytes.fromhex("0000000804d2162f")}


async def test_a_server_that_does_not_answer_does_not_hold_anybody_up(install, authority):
    async with mute() as front:
        server = server_at(install, front, sslrootcert=authority.certificate)
        assert "does not answer" in str(await refusal(install, server))


async def test_a_client_certificate_is_shown_when_there_is_one(install, authority, good, tmp_path):
    """The front takes none but clients whose certificate its CA has signed."""
    clients = authority.certificate
    ours = authority.issue("runtime")
    stranger = Authority(tmp_path, "strangers").issue("stranger")
    old = authority.issue("old-runtime", days=-1)
    async with way(install, authority, good, clients) as (front, server):
        error = await refusal(install, server)
        assert "asks for a client certificate" in str(error)
        for pair in (stranger, old):
            error = await refusal(install, _showing(server, pair))
            assert "sslcert" in str(error)
        await use_everything(install, _showing(server, ours))
        assert front.in_the_clear() == []


async def test_one_client_certificate_and_passwords_for_all_roles(
    install, authority, native, tmp_path
):
    """`clientcert=verify-ca` of pg_hba.conf with SCRAM: what the manual's 20.12 allows for all."""
    async with watched(install.server.port) as front, AsyncExitStack() as stack:
        await stack.enter_async_context(
            _access(install, "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n")
        )
        server = server_at(install, front, sslrootcert=authority.certificate)
        await use_everything(install, _showing(server, authority.issue("runtime")))

        error = await refusal(install, server)
        assert "with TLS and showed none (sslcert, sslkey) as client certificate" in str(error)
        plain = await refusal(install, server_at(install, front, sslmode="disable"))
        assert "without TLS (sslmode)" in str(plain)
        stranger = Authority(tmp_path, "strangers").issue("stranger")
        assert "sslcert" in str(await refusal(install, _showing(server, stranger)))


async def test_files_that_cannot_be_used_are_named(install, authority, good, tmp_path):
    ours, theirs = authority.issue("client-a"), authority.issue("client-b")
    open_key = tmp_path / "open.key"
    open_key.write_bytes(ours.key.read_bytes())
    open_key.chmod(0o644)
    text = tmp_path / "text.crt"
    text.write_text("no certificate")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sslcert": ours.certificate, "sslkey": open_key}, "others can read the key"),
        ({"sslcert": ours.certificate, "sslkey": theirs.key}, "is not the key of"),
        ({"sslcert": text, "sslkey": ours.key}, "is no certificate"),
        ({"sslcert": ours.certificate}, "belong together"),
        ({"sslrootcert": tmp_path / "none.crt"}, "no such file"),
        ({"sslrootcert": text}, "holds no certificate"),
        ({"sslrootcert": tmp_path}, "is not a file"),
        ({"sslcrl": text}, "holds no certificate"),
    ]
    async with way(install, authority, good) as (front, server):
        for options, told in wrong:
            error = await refusal(install, dataclasses.replace(server, **options))
            assert isinstance(error, SettingError)
            assert told in str(error)
        assert front.connections == []


async def test_a_key_that_is_opened_later_is_not_told_to_tenants(install, authority, good, caplog):
    ours = authority.issue("opened-later")
    async with way(install, authority, good) as (_, server):
        config = EngineConfig(servers=(_showing(server, ours),), settings=install.settings)
        async with await Engine.open(config) as engine:
            await engine.apply_migration("0001_users", TABLES)
            await make_tenant(engine, "first", IsolationLevel.SCHEMA)
            ours.key.chmod(0o644)
            with pytest.raises(TransportError) as caught:
                await make_tenant(engine, "second", IsolationLevel.SCHEMA)
            assert str(ours.key) not in str(caught.value)
            assert "others can read the key" in caplog.text


async def test_a_renewed_certificate_is_used_without_a_restart(install, authority, good, tmp_path):
    old, new = authority.issue("renewed-old", days=-1), authority.issue("renewed-new")
    held = Pair(tmp_path / "client.crt", tmp_path / "client.key")

    def put(pair: Pair) -> None:
        held.certificate.write_bytes(pair.certificate.read_bytes())
        held.key.touch(mode=0o600)
        held.key.write_bytes(pair.key.read_bytes())

    async with way(install, authority, good, authority.certificate) as (_, server):
        await asyncio.to_thread(put, old)
        assert "sslcert" in str(await refusal(install, _showing(server, held)))
        await asyncio.to_thread(put, new)
        async with engine_at(install, _showing(server, held)):
            pass


async def test_ssl_enabled_is_tls_on_this_machine_as_well(install, authority, good):
    tenant = TenantContext(tenant_id="acme", isolation_level=IsolationLevel.DATABASE)
    async with way(install, authority, good) as (front, server):
        # Nothing is said about sslmode: without ssl_enabled that would be plain text.
        server = dataclasses.replace(server, sslmode=None)
        strategy = DatabaseLevelStrategy(
            DatabaseConfig(host="localhost", port=front.port, ssl_enabled=True)
        )
        await strategy.initialize(EngineConfig(servers=(server,), settings=install.settings))
        told = await strategy.isolate_data(tenant, "look", {"query": f"select '{CANARY}'"})
        assert told["rows"] == [[CANARY]]
        assert (await strategy.metrics())["without_effect"] == {}
        await strategy.cleanup()
        assert front.connections
        assert front.in_the_clear() == []


async def test_ssl_enabled_refuses_a_server_without_tls(install):
    strategy = DatabaseLevelStrategy(DatabaseConfig(ssl_enabled=True))
    with pytest.raises(TransportError, match="does not speak TLS"):
        await strategy.initialize(install.config)
    strategy = DatabaseLevelStrategy(DatabaseConfig(ssl_enabled=True))
    server = dataclasses.replace(install.server_config, sslmode="disable")
    with pytest.raises(SettingError, match=r"ssl_enabled: server main .* without TLS"):
        await strategy.initialize(EngineConfig(servers=(server,), settings=install.settings))


def _showing(server: ServerConfig, pair: Pair) -> ServerConfig:
    return dataclasses.replace(server, sslcert=pair.certificate, sslkey=pair.key)


@asynccontextmanager
async def _access(install: Install, line: str) -> AsyncIterator[None]:
    """That line in pg_hba.conf, before those that let the tests in over the unix socket only."""
    path = install.server.directory / "data" / "pg_hba.conf"
    before = path.read_text()
    async with _over_socket(install) as admin:
        path.write_text(f"local all all scram-sha-256\n{line}")
        await admin.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            path.write_text(before)
            await admin.execute("select pg_reload_conf()")


@asynccontextmanager
async def _over_socket(install: Install) -> AsyncIterator[asyncpg.Connection]:
    server = install.server
    connection = await asyncpg.connect(
        host=str(server.socket_directory),
        port=server.port,
        user=server.user,
        password=server.password,
        database="postgres",
    )
    try:
        yield connection
    finally:
        await connection.close()


async def _has_tls(admin: asyncpg.Connection) -> bool:
    try:
        await admin.execute("alter system set ssl = on")
    except asyncpg.PostgresError:
        return False
    await admin.execute("alter system reset ssl")
    return True


async def _set(admin: asyncpg.Connection, **settings: str) -> None:
    for name, value in settings.items():
        await admin.execute(f"alter system set {name} = '{value}'")
    await admin.execute("select pg_reload_conf()")


def _chown(path: Path, owner: Any) -> None:
    import os

    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)
