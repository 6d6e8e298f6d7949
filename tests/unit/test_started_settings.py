"""In what settings differ from those that a runtime was started with; secrets are not told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.serve.started_settings import differences, write_started

_URL = "http://127.0.0.1:4321"
_SECRET = "postgresql://u:hush@h/d"


def found(tmp_path: Path, there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    path = tmp_path / "settings.json"
    write_started(Settings.from_env(there), path)
    assert "hush" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    return differences(Settings.from_env(here), path, _URL)


def test_the_same_settings_do_not_differ(tmp_path: Path):
    given = {"TENANCY_POSTGRES_DSN": _SECRET, "TENANCY_CONNECTION_IDLE_S": "0.1"}
    assert found(tmp_path, given, dict(given)) == []
    assert found(tmp_path, {}, {"TENANCY_HTTP_PORT": "8000"}) == []


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (
            {"TENANCY_HTTP_PORT": "9000"},
            {},
            "TENANCY_HTTP_PORT is 9000 there, and 8000 here",
        ),
        (
            {},
            {"TENANCY_PREMIUM_CONNECTIONS_MAX": "3"},
            "TENANCY_PREMIUM_CONNECTIONS_MAX is 262143 there, and 3 here",
        ),
        (
            {},
            {"TENANCY_DRAIN_TIMEOUT_S": "2.5"},
            "TENANCY_DRAIN_TIMEOUT_S is 10 there, and 2.5 here",
        ),
        (
            {},
            {"TENANCY_HTTP_TLS_KEY": "/k"},
            "TENANCY_HTTP_TLS_KEY is not set there, and /k here",
        ),
        (
            {},
            {"TENANCY_POSTGRES_DSN": _SECRET},
            "TENANCY_POSTGRES_DSN is not set there, and is here",
        ),
        (
            {"TENANCY_POSTGRES_DSN": _SECRET},
            {"TENANCY_POSTGRES_DSN": f"{_SECRET}2"},
            "TENANCY_POSTGRES_DSN is another one there",
        ),
        (
            {"TENANCY_REDIS_URL": "redis://:hush@h"},
            {},
            "TENANCY_REDIS_URL is set there, and not here",
        ),
        (
            {"TENANCY_MASTER_KEY": "ab" * 32},
            {"TENANCY_MASTER_KEY": "cd" * 32},
            "TENANCY_MASTER_KEY is another one there",
        ),
        (
            {"TENANCY_JWT_JWKS": "https://u:hush@h"},
            {"TENANCY_JWT_JWKS": "https://u:hush2@h"},
            "TENANCY_JWT_JWKS is another one there",
        ),
    ],
)
def test_each_difference_is_told(tmp_path: Path, there: Any, here: Any, told: str):
    assert found(tmp_path, there, here) == [told]


def test_whoever_asks_for_the_port_that_was_found_has_it(tmp_path: Path):
    free = {"TENANCY_HTTP_PORT": "0"}
    assert found(tmp_path, free, {"TENANCY_HTTP_PORT": "4321"}) == []
    assert len(found(tmp_path, free, {"TENANCY_HTTP_PORT": "4322"})) == 1


def test_a_file_of_servers_that_was_changed_is_told(tmp_path: Path):
    servers = tmp_path / "servers.toml"
    started = tmp_path / "settings.json"
    far = '[[server]]\nname = "far"\ndsn = "postgresql://u:hush@far/d"\n'
    servers.touch(mode=0o600)
    servers.write_text(far)
    settings = Settings(postgres_servers_file=servers)
    write_started(settings, started)
    assert "hush" not in started.read_text()
    assert differences(settings, started, _URL) == []

    servers.write_text(f"# Comments are not compared.\n{far}")
    assert differences(settings, started, _URL) == []
    servers.write_text(far.replace("hush", "hush2"))
    assert differences(settings, started, _URL) == [
        f"TENANCY_POSTGRES_SERVERS_FILE ({servers}) has been changed since it was read there"
    ]
    (told,) = differences(Settings(), started, _URL)
    assert told == f"TENANCY_POSTGRES_SERVERS_FILE is {servers} there, and not set here"
    servers.write_text("[[server]\n")
    with pytest.raises(SettingError, match="not valid TOML"):
        differences(settings, started, _URL)

    # An earlier release has not noted what the file said.
    noted = json.loads(started.read_text())
    del noted["servers"]
    started.write_text(json.dumps(noted))
    assert differences(settings, started, _URL) == []


def test_nothing_differs_from_what_is_not_known(tmp_path: Path):
    path = tmp_path / "settings.json"
    assert differences(Settings(), path, _URL) == []
    for text in ("", "[]", "{}", '{"salt": "x", "settings": []}'):
        path.write_text(text)
        assert differences(Settings(), path, _URL) == []
