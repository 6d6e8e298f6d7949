"""What the runtime writes down of itself."""

from __future__ import annotations

import os
import stat

import pytest

from tenancy.data_isolation.engine.process_identity import ProcessIdentity
from tenancy.data_isolation.serve.runtime_state import Phase, RuntimeDirectory, RuntimeState


@pytest.fixture
def directory(tmp_path) -> RuntimeDirectory:
    found = RuntimeDirectory(tmp_path / "home")
    found.prepare()
    return found


def _state(**fields) -> RuntimeState:
    return RuntimeState(state=Phase.RUNNING, url="http://127.0.0.1:1", **fields)


def test_what_was_written_is_read_again(directory):
    state = _state(daemon=ProcessIdentity.of(os.getpid()), postgres_dsn="postgresql://u:hush@h/d")

    directory.write(state)

    assert directory.read() == state


def test_the_file_is_for_its_owner_alone(directory):
    directory.write(_state())

    modes = {stat.S_IMODE(path.stat().st_mode) for path in (directory.run / "state.json",)}
    assert modes == {0o600}
    assert stat.S_IMODE(directory.run.stat().st_mode) == 0o700


def test_passwords_do_not_show_in_a_representation():
    assert "hush" not in repr(_state(postgres_dsn="hush", redis_url="hush"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "running"}', '{"state": "x"}'])
def test_a_file_of_another_kind_is_no_state(directory, text):
    (directory.run / "state.json").write_text(text)

    assert directory.read() is None
    assert directory.present().state is Phase.STOPPED


def test_without_a_daemon_nothing_runs_whatever_the_file_says(directory):
    directory.write(_state(error=None))

    assert directory.present().state is Phase.STOPPED
    assert directory.present().url is None


def test_the_last_failure_is_remembered(directory):
    directory.write(RuntimeState(state=Phase.STOPPED, error="no disk"))

    assert directory.present().error == "no disk"


def test_while_the_lock_is_held_the_file_is_believed(directory):
    directory.write(_state())
    other = RuntimeDirectory(directory.home)
    assert directory.lock.try_take()
    try:
        assert other.is_alive()
        assert other.present().state is Phase.RUNNING
        assert not other.lock.try_take()
    finally:
        directory.lock.release()
    assert not other.is_alive()


def test_a_daemon_that_has_written_nothing_yet_is_starting(directory):
    directory.write(RuntimeState(state=Phase.STOPPED))
    assert directory.lock.try_take()
    try:
        assert RuntimeDirectory(directory.home).present().state is Phase.STARTING
    finally:
        directory.lock.release()


def test_looking_makes_nothing(tmp_path):
    home = tmp_path / "nothing"

    assert RuntimeDirectory(home).present().state is Phase.STOPPED
    assert not home.exists()


def test_a_short_directory_is_short_and_ours_alone_and_older_ones_go(directory):
    first = directory.short_directory()
    second = directory.short_directory()
    try:
        assert len(str(second)) <= 28
        assert stat.S_IMODE(second.stat().st_mode) == 0o700
        assert not first.exists()
    finally:
        directory.remove_short_directories()
    assert not second.exists()


def test_short_directories_of_another_home_and_links_are_left_alone(directory, tmp_path):
    other = RuntimeDirectory(tmp_path / "other")
    theirs = other.short_directory()
    mine = directory.short_directory()
    link = mine.with_name(f"{mine.name}x")
    link.symlink_to(theirs)
    try:
        directory.remove_short_directories()
        assert theirs.is_dir()
        assert link.is_symlink()
    finally:
        link.unlink()
        other.remove_short_directories()


def test_this_process_is_never_a_leftover(directory, monkeypatch):
    monkeypatch.chdir(directory.work)

    assert directory.leftovers() == []
