"""The file of replicas: what it may say, what Ray Serve is told, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.serve.replicas_file import Autoscaling, Replicas, replicas
from tenancy.data_isolation.serve.started_settings import differences, write_started

_WHOLE = """
[autoscaling_config]
min_replicas = 2
max_replicas = 5
target_ongoing_requests = 40
upscale_delay_s = 1.5
downscale_delay_s = 60
look_back_period_s = 6
"""


def _read(tmp_path: Path, text: str, **settings: int) -> Replicas:
    file = tmp_path / "replicas.toml"
    file.write_text(text)
    return replicas(Settings(http_replicas_file=file, **settings))


def test_without_a_file_the_setting_counts():
    assert replicas(Settings(http_replicas=3)).options() == {"num_replicas": 3}


def test_a_file_with_a_number(tmp_path):
    assert _read(tmp_path, "num_replicas = 4").options() == {"num_replicas": 4}


def test_ray_serve_is_told_what_the_file_says(tmp_path):
    found = _read(tmp_path, _WHOLE)

    assert found.options() == {
        "num_replicas": None,
        "autoscaling_config": {
            "min_replicas": 2,
            "max_replicas": 5,
            "target_ongoing_requests": 40.0,
            "upscale_delay_s": 1.5,
            "downscale_delay_s": 60.0,
            "look_back_period_s": 6.0,
            # Three reports within the time to look back on.
            "metrics_interval_s": 2.0,
        },
    }
    assert Replicas.of(found.text()) == found


def test_what_need_not_be_said(tmp_path):
    text = "[autoscaling_config]\nmax_replicas = 2\ntarget_ongoing_requests = 0.5"
    assert _read(tmp_path, text).autoscaling == Autoscaling(
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=0.5,
        upscale_delay_s=30,
        downscale_delay_s=600,
        look_back_period_s=30,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "one of num_replicas and [autoscaling_config]"),
        ("num_replicas = 1\n" + _WHOLE, "one of num_replicas and [autoscaling_config]"),
        ("num_replicas = 0", "num_replicas is 0; it must be from 1 to 100"),
        ("num_replicas = 1.5", "num_replicas is '1.5'; a whole number is needed"),
        ("num_replicas = true", "num_replicas is 'True'; a whole number is needed"),
        ('num_replicas = "auto"', "num_replicas is 'auto'; a whole number is needed"),
        ("max_ongoing_requests = 5", "it has 'max_ongoing_requests'; there are num_replicas"),
        ("autoscaling_config = 3", "begin it with [autoscaling_config]"),
        ("[autoscaling_config]", "autoscaling_config has no max_replicas"),
        (
            "[autoscaling_config]\nmax_replicas = 2",
            "autoscaling_config has no target_ongoing_requests",
        ),
        (_WHOLE + "smoothing_factor = 1", "autoscaling_config has 'smoothing_factor'; there are"),
        (
            _WHOLE.replace("min_replicas = 2", "min_replicas = 6"),
            "autoscaling_config.min_replicas is 6; it must not be above max_replicas, which is 5",
        ),
        (
            _WHOLE.replace("min_replicas = 2", "min_replicas = 0"),
            "autoscaling_config.min_replicas is 0; it must be from 1 to 100",
        ),
        (
            _WHOLE.replace("= 40", "= 0"),
            "autoscaling_config.target_ongoing_requests is 0; it must be from 0.1",
        ),
        (
            _WHOLE.replace("= 40", "= nan"),
            "autoscaling_config.target_ongoing_requests is nan; it must be from 0.1",
        ),
        (
            _WHOLE.replace("= 1.5", "= -1"),
            "autoscaling_config.upscale_delay_s is -1; it must be from 0 to 86400 (a day)",
        ),
        (_WHOLE.replace("= 60", "= '1m'"), "downscale_delay_s is '1m'; a number is needed"),
        ("num_replicas = ", "it is not valid TOML"),
        ("num_replicas = 1\nnum_replicas = 2", "it is not valid TOML"),
    ],
)
def test_what_is_wrong_is_told_by_the_name_of_the_field(tmp_path, text, told):
    with pytest.raises(SettingError) as wrong:
        _read(tmp_path, text)

    assert wrong.value.detail.startswith("TENANCY_HTTP_REPLICAS_FILE (")
    assert "replicas.toml" in wrong.value.detail
    assert told in wrong.value.detail


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SettingError, match="cannot be read"):
        replicas(Settings(http_replicas_file=tmp_path / "none.toml"))


def test_two_numbers_of_replicas_are_one_too_many(tmp_path):
    with pytest.raises(SettingError, match="unset TENANCY_HTTP_REPLICAS"):
        _read(tmp_path, "num_replicas = 2", http_replicas=3)


def test_a_file_that_was_changed_is_told_to_whoever_starts_the_runtime_again(tmp_path):
    file, noted = tmp_path / "replicas.toml", tmp_path / "settings.json"
    file.write_text("num_replicas = 1")
    settings = Settings(http_replicas_file=file)
    write_started(settings, noted)

    file.write_text("# more of them\nnum_replicas = 1")
    unchanged = differences(settings, noted, None)
    file.write_text("num_replicas = 2")
    changed = differences(settings, noted, None)

    assert unchanged == []
    assert changed == [
        f"TENANCY_HTTP_REPLICAS_FILE ({file}) has been changed since it was read there"
    ]
