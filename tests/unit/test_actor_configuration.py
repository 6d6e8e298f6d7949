"""The actors' file: whole, private, and divided so that the actors together keep the budget."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
    read_configuration,
    write_configuration,
)
from tenancy.data_isolation.actors.directory import MOVER_NAME, build_directory, dedicated_name
from tenancy.data_isolation.core.errors import SettingError, SetupError
from tenancy.data_isolation.core.identifiers import Region, TenantId, TenantNo
from tenancy.data_isolation.core.settings import ServerConfig, Settings

DSN = "postgresql://admin:hunter2@db/postgres"


@pytest.fixture
def configuration(tmp_path):
    return ActorConfiguration(
        settings=Settings(
            home=tmp_path,
            master_key="ab" * 32,
            postgres_bin=Path("/usr/bin"),
            server_connections_max=60,
            tenant_connections_max=8,
            dedicated_actors_max=4,
        ),
        servers=(
            ServerConfig(dsn=DSN, name="main", region="eu"),
            ServerConfig(
                dsn=DSN, name="b", sslmode="verify-full", sslrootcert="system", sslcert="/c"
            ),
        ),
        directory=build_directory(
            version=3,
            actors_per_region=2,
            regions=(Region("eu"), Region("us")),
            dedicated=frozenset({TenantId("acme")}),
        ),
    )


def test_what_is_written_is_read(configuration):
    path = configuration_path(configuration.settings)
    write_configuration(configuration, path)

    assert read_configuration(path) == configuration


def test_only_the_owner_can_read_the_file_and_nothing_else_is_left(configuration):
    path = configuration_path(configuration.settings)
    write_configuration(configuration, path)
    write_configuration(configuration, path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(SetupError, match="tenancy up"):
        read_configuration(tmp_path / "actors.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '"x"'])
def test_a_file_that_is_not_ours_is_refused(tmp_path, text):
    path = tmp_path / "actors.json"
    path.write_text(text)

    with pytest.raises(SetupError):
        read_configuration(path)


def test_a_file_with_settings_of_another_version_is_refused(configuration):
    path = configuration_path(configuration.settings)
    write_configuration(configuration, path)
    document = json.loads(path.read_text())
    document["settings"]["of_the_future"] = 1
    path.write_text(json.dumps(document))

    with pytest.raises(SettingError):
        read_configuration(path)


def test_what_clients_get_holds_no_secret(configuration):
    public = configuration.public_settings()

    assert public.master_key is None
    assert public.postgres_dsn is None
    assert public.redis_url is None
    assert public.actor_tenants_max == configuration.settings.actor_tenants_max


def test_nothing_that_prints_a_configuration_prints_its_secrets(configuration):
    assert "hunter2" not in repr(configuration)
    assert "abab" not in repr(configuration)


@pytest.mark.parametrize(
    "name", ["tenancy-shared-default-0", dedicated_name(TenantNo(1)), MOVER_NAME]
)
def test_what_a_tenant_may_take_does_not_depend_on_the_process_that_asks(configuration, name):
    """Whoever makes a login gives it room for the sessions of all processes."""
    there = configuration.engine_config(name).resolved_settings()

    assert there.tier_limits == configuration.settings.tier_limits


def test_all_actors_together_keep_within_the_servers_connections(configuration):
    names = [
        *configuration.directory.shared_names(),
        *(dedicated_name(TenantNo(number)) for number in range(4)),
    ]

    shares = [
        configuration.engine_config(name).resolved_settings().server_connections_max
        for name in names
    ]

    assert min(shares) >= 1
    assert sum(shares) <= 60
    assert shares[-1] == 8
