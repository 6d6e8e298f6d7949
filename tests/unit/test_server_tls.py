"""What a server's configuration says about TLS, and what of it is refused."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.server_tls import ServerTls, SslMode, is_local, plain_dsn
from tenancy.data_isolation.core.settings import ServerConfig, Settings

FAR = "postgresql://admin:hush@db.example.com:6000/postgres"
NEAR = "postgresql://admin:hush@127.0.0.1/postgres"
SOCKET = "postgresql://admin@/postgres?host=/run/postgresql"


def tls(dsn: str, **fields: str) -> ServerTls:
    return ServerTls.of(ServerConfig(dsn=dsn, **fields))


@pytest.mark.parametrize(
    ("dsn", "mode", "root"),
    [
        (FAR, SslMode.VERIFY_FULL, "system"),
        ("postgresql://a@10.0.0.7/postgres", SslMode.VERIFY_FULL, "system"),
        ("postgresql://a@localhost,db.example.com/postgres", SslMode.VERIFY_FULL, "system"),
        (NEAR, SslMode.DISABLE, None),
        ("postgresql://a@[::1]:1/postgres", SslMode.DISABLE, None),
        ("postgresql://a@127.9.9.9/postgres", SslMode.DISABLE, None),
        (SOCKET, SslMode.DISABLE, None),
        ("postgresql:///postgres", SslMode.DISABLE, None),
        (f"{FAR}?sslmode=disable", SslMode.DISABLE, None),
        (f"{FAR}?sslmode=require", SslMode.REQUIRE, None),
        (f"{FAR}?sslmode=require&sslrootcert=/ca.crt", SslMode.VERIFY_CA, "/ca.crt"),
        (f"{FAR}?sslmode=verify-ca&sslrootcert=/ca.crt", SslMode.VERIFY_CA, "/ca.crt"),
        (f"{NEAR}?sslmode=verify-full&sslrootcert=system", SslMode.VERIFY_FULL, "system"),
    ],
)
def test_the_mode_is_what_was_written_and_never_less_on_a_network(dsn, mode, root):
    found = tls(dsn)

    assert (found.mode, found.root_cert) == (mode, root)
    assert found.min_version == "TLSv1.2"


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        (f"{FAR}?sslmode=prefer", "goes on without TLS"),
        (f"{NEAR}?sslmode=allow", "goes on without TLS"),
        (f"{FAR}?sslmode=full", "is not known; use one of disable, require"),
        (f"{SOCKET}&sslmode=verify-full", "no TLS over a unix socket"),
        ("postgresql:///postgres?sslmode=require", "no TLS over a unix socket"),
        ("postgresql://a@/postgres?host=/run,db.example.com", "no TLS over a unix socket"),
        (f"{FAR}?sslcert=/c.crt", "belong together"),
        (f"{FAR}?sslcert=c.crt&sslkey=/c.key", "must be an absolute path"),
        (f"{FAR}?sslmode=require&sslrootcert=system", "anybody with a certificate"),
        (f"{FAR}?sslmode=verify-ca", "anybody with a certificate"),
        (f"{FAR}?ssl_min_protocol_version=TLSv1", "use TLSv1.2 or TLSv1.3"),
        (
            f"{FAR}?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
            "below the minimum",
        ),
        (f"{FAR}?sslnegotiation=later", "use postgres or direct"),
        (f"{FAR}?channel_binding=require", "driver has no SCRAM-SHA-256-PLUS"),
        (f"{NEAR}?sslrootcert=/ca.crt", "nothing to act on (root_cert)"),
        (f"{NEAR}?sslnegotiation=direct", "nothing to act on (direct)"),
        ("postgresql://a@near/postgres?host=far", "names two hosts"),
        ("postgresql://a@[::1/postgres", "cannot be used"),
    ],
)
def test_what_cannot_be_kept_is_an_error(dsn, told):
    with pytest.raises(SettingError) as caught:
        tls(dsn)

    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


def test_fields_say_the_same_as_the_dsn_or_what_it_does_not_say():
    found = tls(FAR, sslmode="verify-ca", sslrootcert="/ca.crt", sslcert="/c", sslkey="/k")

    assert (found.mode, found.cert, found.key) == (SslMode.VERIFY_CA, "/c", "/k")
    assert tls(f"{FAR}?sslmode=verify-full", sslmode="verify-full").mode is SslMode.VERIFY_FULL
    with pytest.raises(SettingError, match="different things about sslmode"):
        tls(f"{FAR}?sslmode=disable", sslmode="verify-full")


def test_settings_name_the_tls_of_their_server():
    env = {
        "TENANCY_POSTGRES_DSN": FAR,
        "TENANCY_POSTGRES_SSLMODE": "verify-full",
        "TENANCY_POSTGRES_SSLROOTCERT": "system",
        "TENANCY_POSTGRES_SSLCERT": "client.crt",
        "TENANCY_POSTGRES_SSLKEY": "~/client.key",
    }
    server = Settings.from_env(env).postgres_server()

    assert server is not None
    found = ServerTls.of(server)
    assert found.root_cert == "system"
    # A daemon has another working directory than the one who wrote the variable.
    assert found.cert is not None
    assert found.cert.startswith("/")
    assert found.key is not None
    assert found.key.startswith("/")


def test_tls_without_a_server_has_nothing_to_act_on():
    with pytest.raises(SettingError, match="TENANCY_POSTGRES_SSLMODE has nothing to act on"):
        Settings(postgres_sslmode="verify-full").postgres_server()


def test_a_password_of_a_key_is_not_shown():
    assert "hush" not in repr(tls(f"{FAR}?sslcert=/c&sslkey=/k&sslpassword=hush"))


def test_the_driver_does_not_get_what_it_would_send_as_a_setting():
    told = plain_dsn(ServerConfig(dsn=f"{FAR}?channel_binding=prefer&sslmode=require"))

    assert told == f"{FAR}?sslmode=require"
    assert plain_dsn(ServerConfig(dsn=FAR)) == FAR


@pytest.mark.parametrize("host", ["db.example.com", "10.1.2.3", "localhost.example.com", "::2"])
def test_other_machines_are_not_this_one(host):
    assert not is_local(host)
