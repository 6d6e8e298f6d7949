"""The endpoint's certificate is held against what clients would hold it against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, Pair

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.endpoint_certificate import endpoint_certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(pair: Pair, authority: Authority | None, **given: Any) -> Settings:
    return Settings(
        http_tls_certificate=pair.certificate,
        http_tls_key=given.pop("key", pair.key),
        http_tls_ca=authority and authority.certificate,
        **given,
    )


@pytest.mark.parametrize(
    ("hosts", "given", "url", "local"),
    [
        (("localhost",), {}, "https://localhost:8000", "https://127.0.0.1:8000"),
        (
            ("a.example.com", "127.0.0.1"),
            {},
            "https://127.0.0.1:8000",
            "https://127.0.0.1:8000",
        ),
        (
            ("a.example.com", "127.0.0.1"),
            {"http_host": "0.0.0.0"},
            "https://a.example.com:8000",
            "https://127.0.0.1:8000",
        ),
        (
            ("*.example.com",),
            {"http_tls_name": "b.example.com"},
            "https://b.example.com:8000",
            "https://127.0.0.1:8000",
        ),
        (("::1",), {"http_host": "::1"}, "https://[::1]:8000", "https://[::1]:8000"),
    ],
)
def test_the_url_has_a_name_that_the_certificate_is_for(authority, hosts, given, url, local):
    endpoint = Endpoint.of(settings(authority.issue("one", *hosts), authority, **given))

    assert (endpoint.url, endpoint.local_url) == (url, local)
    assert endpoint.ca_file == str(authority.certificate)


def test_without_a_certificate_it_is_plain_http():
    endpoint = Endpoint.of(Settings(http_host="0.0.0.0"))

    assert endpoint.url == endpoint.local_url == "http://127.0.0.1:8000"
    assert endpoint.context() is None


def test_a_self_signed_certificate_is_its_own_authority(authority):
    pair = authority.issue_self_signed("alone", "localhost")
    found = endpoint_certificate(
        Settings(
            http_tls_certificate=pair.certificate,
            http_tls_key=pair.key,
            http_tls_ca=pair.certificate,
        )
    )

    assert found is not None
    assert found.name == "localhost"
    with pytest.raises(SettingError, match="set TENANCY_HTTP_TLS_CA to the certificate of the CA"):
        endpoint_certificate(settings(pair, None))


def test_what_clients_would_refuse_is_refused_at_the_start(authority, tmp_path):
    good = authority.issue("good", "localhost")
    other = authority.issue("other", "localhost")
    elsewhere = Authority(tmp_path, "elsewhere")
    client = authority.issue("client")
    nameless = {"http_tls_name": "b.example.com"}
    wrong = [
        (settings(good, authority, key=other.key), "is not the key of"),
        (settings(authority.issue("old", "localhost", days=-1), authority), "has expired"),
        (settings(good, elsewhere), "is not signed by"),
        (settings(good, None), "is not signed by an authority that this system trusts"),
        (settings(good, authority, **nameless), "is not for b.example.com"),
        (settings(authority.issue("wide", "*.example.com"), authority), "no name to reach"),
        (settings(client, authority), "clients would refuse"),
        (settings(Pair(good.key, good.key), authority), "is no certificate"),
        (settings(good, authority, key=tmp_path / "none"), "no such file"),
    ]
    for given, told in wrong:
        with pytest.raises(SettingError) as caught:
            endpoint_certificate(given)
        assert told in str(caught.value)
        assert "TENANCY_HTTP_TLS_" in str(caught.value)


def test_a_key_that_others_can_read_is_refused(authority):
    pair = authority.issue("good", "localhost")
    assert endpoint_certificate(settings(pair, authority)) is not None
    for mode in (0o604, 0o660, 0o644):
        pair.key.chmod(mode)
        with pytest.raises(SettingError, match=r"others can read the key .*; run chmod 600"):
            endpoint_certificate(settings(pair, authority))


@pytest.mark.parametrize("name", ["certificate", "key", "ca", "name"])
def test_half_of_it_is_an_error(authority, name):
    pair = authority.issue("good", "localhost")
    value = "a.example.com" if name == "name" else pair.certificate
    with pytest.raises(SettingError, match=rf"TENANCY_HTTP_TLS_{name.upper()} has nothing"):
        endpoint_certificate(Settings(**{f"http_tls_{name}": value}))
