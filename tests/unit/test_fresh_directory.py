"""A directory is there whole, or nothing is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tenancy.data_isolation.serve.fresh_directory import check_fresh, fresh_directory
from tenancy.data_isolation.serve.terminal import CommandError


def _names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


@pytest.mark.parametrize("there_already", [False, True])
def test_it_appears_at_the_end_with_what_is_in_it(tmp_path, there_already):
    target = tmp_path / "target"
    if there_already:
        target.mkdir()

    with fresh_directory(check_fresh(target)) as building:
        (building / "a").write_text("a")
        assert building.parent == tmp_path
        assert not target.exists() or _names(target) == []

    assert _names(tmp_path) == ["target"]
    assert _names(target) == ["a"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CommandError("x")])
def test_after_an_error_nothing_is_left(tmp_path, error):
    def fill() -> None:
        with fresh_directory(check_fresh(tmp_path / "target")) as building:
            (building / "a").mkdir()
            (building / "a" / "b").write_text("b")
            raise error

    with pytest.raises(error if isinstance(error, type) else CommandError):
        fill()

    assert _names(tmp_path) == []


def test_an_error_of_the_system_is_told_with_the_name_of_the_directory(tmp_path):
    with (
        pytest.raises(CommandError, match=r"target cannot be written: No space left"),
        fresh_directory(check_fresh(tmp_path / "target")),
    ):
        raise OSError(28, os.strerror(28))

    assert _names(tmp_path) == []


def test_what_came_there_meanwhile_is_not_touched(tmp_path):
    target = check_fresh(tmp_path / "target")

    def fill() -> None:
        with fresh_directory(target):
            target.mkdir()
            (target / "mine").write_text("mine")

    with pytest.raises(CommandError, match="Directory not empty"):
        fill()

    assert _names(tmp_path) == ["target"]
    assert _names(target) == ["mine"]


def test_a_link_means_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    with fresh_directory(check_fresh(tmp_path / "link")):
        pass

    assert (tmp_path / "elsewhere").is_dir()
    assert (tmp_path / "link").is_symlink()


def test_what_is_in_the_way_is_told(tmp_path, monkeypatch, subtests):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path, told in (
        (tmp_path / "file", "is there already and is no directory"),
        (tmp_path / "full", "is not empty"),
        (Path("../full"), "is not empty"),
        (Path("."), "the working directory"),
        (Path(""), "the working directory"),
        (Path("/proc"), "is not empty"),
        (tmp_path / "none" / "target", "there is no directory"),
        (tmp_path / "file" / "target", "there is no directory"),
        (tmp_path / ("x" * 256), "File name too long"),
    ):
        with subtests.test(path=path), pytest.raises(CommandError, match=told):
            check_fresh(path)


def test_where_nothing_can_be_made_is_told():
    # Not even the superuser can make a directory there.
    with (
        pytest.raises(CommandError, match="/proc/target cannot be written"),
        fresh_directory(check_fresh(Path("/proc/target"))),
    ):
        pass
