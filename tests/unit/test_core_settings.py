"""Settings: read once, validated, and every error names its variable."""

from __future__ import annotations

import dataclasses

import pytest

from tenancy.data_isolation.core import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.core.bounds import bounds
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.settings import variables
from tenancy.data_isolation.core.tier_limits import LIMIT_VARIABLES


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_env({}) == Settings()


def test_every_field_of_a_simple_type_can_be_set_by_its_variable():
    env = {"TENANCY_STATEMENT_TIMEOUT_MS": "5", "TENANCY_HOME": "/x", "TENANCY_DATABASE": "d"}

    settings = Settings.from_env(env)

    assert (settings.statement_timeout_ms, str(settings.home), settings.database) == (5, "/x", "d")


def test_overrides_win_over_the_environment():
    assert Settings.from_env({"TENANCY_HTTP_PORT": "1"}, http_port=2).http_port == 2


def test_other_variables_are_not_ours():
    assert Settings.from_env({"PATH": "/bin", "RAY_X": "1"}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENANCY_STATEMENT_TIMEOUT_MS", "soon"),
        ("TENANCY_STATEMENT_TIMEOUT_MS", "0"),
        ("TENANCY_STATEMENT_TIMEOUT_MS", "-1"),
        ("TENANCY_CONNECTION_IDLE_S", "nan-ish"),
        ("TENANCY_CONNECTION_IDLE_S", "nan"),
        ("TENANCY_CONNECTION_IDLE_S", "inf"),
        ("TENANCY_HTTP_PORT", "70000"),
        ("TENANCY_MASTER_KEY", "abc"),
        ("TENANCY_STATEMENT_TIMEOUT", "5"),
        ("TENANCY_POSTGRES_DSN", ""),
        ("TENANCY_HOME", ""),
    ],
)
def test_a_bad_value_is_refused_and_the_variable_named(variable, value):
    with pytest.raises(SettingError, match=variable):
        Settings.from_env({variable: value})


_NUMBERS = [
    item
    for item in dataclasses.fields(Settings)
    if isinstance(getattr(Settings(), item.name), int | float)
]


@pytest.mark.parametrize("field", _NUMBERS, ids=lambda field: field.name)
def test_every_number_has_bounds_and_the_error_names_them(field):
    variable, limits = f"TENANCY_{field.name.upper()}", bounds(field.name)
    whole = isinstance(getattr(Settings(), field.name), int)
    for value in (limits.least, limits.most):
        text = str(int(value) if whole else value)
        assert getattr(Settings.from_env({variable: text}), field.name) == value
    least, most = (
        f"{int(value) if value >= 1 else value}" for value in (limits.least, limits.most)
    )
    for text in (str(10**30), "-1", str(int(limits.most) + 1)):
        with pytest.raises(SettingError) as caught:
            Settings.from_env({variable: text})
        told = caught.value.detail
        assert told.startswith(f"{variable} is ")
        assert f"from {least} to {most}" in told.replace("from 0.0 ", "from 0 ")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("measurement_window_s", 1e-9, "is 1e-09; it must be 0, or from 1 to 3600 (0 = nothing is"),
        ("statement_statistics_max", 99, "is 99; it must be 0, or from 100 to 1073741823"),
        ("measurement_window_s", -1.0, "must be 0, or from 1 to 3600"),
        ("load_window_s", 0.0, "must be from 0.1 to 86400"),
        ("move_poll_s", 0.0, "must be from 0.01"),
        ("move_follow_s", 1e-9, "must be from 0.01"),
        ("schema_refresh_s", 1e-9, "must be from 0.01"),
        ("named_operation_refresh_s", 1e-9, "must be from 0.01"),
    ],
)
def test_what_happens_again_and_again_has_a_least_time_between(name, value, told):
    with pytest.raises(SettingError) as caught:
        Settings(**{name: value})
    assert told in caught.value.detail


def test_a_window_of_nothing_measures_nothing():
    assert Settings(measurement_window_s=0).measurement_window_s == 0


def test_no_other_setting_that_has_to_be_more_than_nothing_may_be_almost_nothing():
    """A billionth is what somebody writes who did not mean it."""
    numbers = [item.name for item in _NUMBERS if isinstance(getattr(Settings(), item.name), float)]
    taken = []
    for name in numbers:
        try:
            Settings(**{name: 1e-9})
        except SettingError:
            continue
        taken.append(name)
    assert set(taken) == {"http_tls_hsts_s", "traces_sample_percent"}


def test_a_value_of_any_length_makes_a_message_that_can_be_read():
    with pytest.raises(SettingError, match="TENANCY_RESULT_ROWS_MAX") as caught:
        Settings.from_env({"TENANCY_RESULT_ROWS_MAX": "9" * 4_000})
    assert len(caught.value.detail) < 200
    with pytest.raises(SettingError, match="TENANCY_RESULT_ROWS_MAX") as caught:
        Settings.from_env({"TENANCY_RESULT_ROWS_MAX": "9" * 5_000})
    assert len(caught.value.detail) < 200


def test_a_variable_that_is_almost_one_of_ours_is_told_so():
    with pytest.raises(SettingError) as caught:
        Settings.from_env({"TENANCY_HTP_PORT": "1"})
    text = caught.value.detail
    assert text.startswith("TENANCY_HTP_PORT is not a setting; did you mean TENANCY_HTTP_PORT or ")
    assert text.endswith("? `tenancy settings` lists all")
    assert text.count("TENANCY_") <= 4


def test_a_variable_that_is_like_none_of_ours_is_told_where_they_are():
    with pytest.raises(SettingError) as caught:
        Settings.from_env({"TENANCY_FOO": "1"})
    assert caught.value.detail == "TENANCY_FOO is not a setting; `tenancy settings` lists all"


def test_every_variable_is_known_with_its_value():
    found = variables(Settings(http_port=1))
    assert found["TENANCY_HTTP_PORT"] == 1
    assert found["TENANCY_FREE_LOCKS_MAX"] == 500
    assert found.keys() >= LIMIT_VARIABLES
    assert len(found) == len(dataclasses.fields(Settings)) - 1 + len(LIMIT_VARIABLES)


def test_secrets_do_not_show():
    settings = Settings(master_key="ab" * 32, postgres_dsn="postgresql://u:hush@h/d")
    server = ServerConfig(dsn="postgresql://u:hush@h/d")

    assert "hush" not in repr(settings) + repr(server) + repr(EngineConfig(servers=[server]))
    assert "abab" not in repr(settings)


def test_plain_dsns_become_named_servers():
    config = EngineConfig(servers=["postgresql://a", "postgresql://b"])

    assert [server.name for server in config.servers] == ["main", "server-2"]


def test_two_servers_of_one_name_are_refused():
    with pytest.raises(SettingError, match="one name"):
        EngineConfig(servers=[ServerConfig(dsn="a"), ServerConfig(dsn="b")])


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().http_port = 1


def test_a_verified_credential_is_not_believed_for_longer_than_is_promised():
    with pytest.raises(SettingError, match="TENANCY_CREDENTIAL_CACHE_MS"):
        Settings(credential_cache_ms=1_001)
    assert Settings(credential_cache_ms=1_000).credential_cache_ms == 1_000
