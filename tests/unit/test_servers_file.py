"""The file of further servers: what it says, and what of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenancy.data_isolation.core import ServerConfig, Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.servers_file import all_servers

FIRST = ServerConfig(dsn="postgresql://one")
FAR = '[[server]]\nname = "far"\ndsn = "postgresql://u:secret@far/postgres"\n'


def listed(directory: Path, text: str, mode: int = 0o600) -> tuple[ServerConfig, ...]:
    path = directory / "servers.toml"
    path.write_text(text)
    path.chmod(mode)
    return all_servers(Settings(postgres_servers_file=path), FIRST)


def test_without_a_file_there_is_the_first_server():
    assert all_servers(Settings(), FIRST) == (FIRST,)


def test_the_first_server_gets_its_region_and_the_others_follow(tmp_path):
    text = (
        'region = "us"\n' + FAR + 'region = "eu"\nsslrootcert = "ca.pem"\nsslkey = "/etc/key"\n'
        'sslcert = "system"\n[[server]]\nname = "third"\ndsn = "postgresql://three"\n'
    )
    first, far, third = listed(tmp_path, text)

    assert (first.name, first.region, first.dsn) == ("main", "us", FIRST.dsn)
    assert (far.name, far.region) == ("far", "eu")
    assert far.sslrootcert == str(tmp_path / "ca.pem")
    assert (far.sslkey, far.sslcert) == ("/etc/key", "system")
    assert (third.name, third.region) == ("third", None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[server]\n", "not valid TOML"),
        ('regoin = "us"\n', "it has 'regoin'; there are region, server"),
        ("region = 5\n", "region 5 is not valid"),
        (FAR.replace('"far"', '"Far Away!"'), "server 'Far Away!' is not valid"),
        (FAR + 'region = "E U"\n', "region 'E U' is not valid"),
        ('server = "far"\n', r"begin each server with \[\[server\]\]"),
        ("server = [5]\n", "server 1 is not a table"),
        ('[[server]]\ndsn = "postgresql://far"\n', "server 1 has no name"),
        ('[[server]]\nname = "far"\n', "server 1 has no dsn"),
        (FAR + "sslmode = 1\n", "sslmode of server 1 is not a text"),
        (FAR + 'passwd = "x"\n', "server 1 has 'passwd'"),
        (FAR + FAR, "two servers that are called 'far'"),
        (FAR.replace("far", "main"), "two servers that are called 'main'"),
    ],
)
def test_what_is_wrong_is_named_without_the_password(tmp_path, text, told):
    with pytest.raises(SettingError, match=told) as caught:
        listed(tmp_path, text)
    assert "TENANCY_POSTGRES_SERVERS_FILE" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(SettingError, match="chmod 600"):
        listed(tmp_path, FAR, mode)


def test_a_file_that_is_not_there_is_told(tmp_path):
    settings = Settings(postgres_servers_file=tmp_path / "none.toml")
    with pytest.raises(SettingError, match="cannot be read"):
        all_servers(settings, FIRST)
