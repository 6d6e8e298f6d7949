"""A home is used with the server that it was set up with."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.serve.home_server import HomeServer

OWN = "postgresql://admin:hush@db.example.com/postgres?sslmode=require"


def home_server(home, dsn=None, database="tenancy"):
    return HomeServer(Settings(home=home, postgres_dsn=dsn, database=database))


def test_a_new_home_takes_any_server_and_keeps_to_it(tmp_path):
    for dsn in (None, OWN):
        home_server(tmp_path, dsn).check()
    home_server(tmp_path, OWN).note()

    home_server(tmp_path, OWN).check()
    home_server(tmp_path, "postgresql://other:word@db.example.com:5432/postgres").check()
    assert "hush" not in (tmp_path / "server").read_text()


@pytest.mark.parametrize(
    ("dsn", "database"),
    [
        (None, "tenancy"),
        ("postgresql://admin:hush@db2.example.com/postgres", "tenancy"),
        ("postgresql://admin:hush@db.example.com:5433/postgres", "tenancy"),
        (OWN, "other"),
    ],
)
def test_another_server_is_refused_with_what_to_do(tmp_path, dsn, database):
    home_server(tmp_path, OWN).note()

    with pytest.raises(SetupError, match="set TENANCY_POSTGRES_DSN as it was") as raised:
        home_server(tmp_path, dsn, database).check()
    assert "hush" not in str(raised.value)
    assert "db.example.com:5432" in str(raised.value)


def test_a_home_with_an_embedded_server_but_no_note_belongs_to_it(tmp_path):
    (tmp_path / "postgres" / "data").mkdir(parents=True)

    home_server(tmp_path).check()
    with pytest.raises(SetupError, match="was set up with the embedded server"):
        home_server(tmp_path, OWN).check()
