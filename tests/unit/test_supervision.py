"""The parts that embedded servers are supervised with: locks, identities, records, users."""

from __future__ import annotations

import dataclasses
import errno
import os
import pwd
import shutil
import socket
from pathlib import Path
from signal import SIGKILL

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine import access_list, service_user, state_directory
from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.polling import in_thread, polled
from tenancy.data_isolation.engine.process_identity import (
    ProcessIdentity,
    processes_inside,
    processes_locking,
)
from tenancy.data_isolation.engine.secret_file import kept_secret
from tenancy.data_isolation.engine.state_directory import ServerRecord, StateDirectory
from tenancy.data_isolation.engine.supervision import is_port_free

HERE = ProcessIdentity.of(os.getpid())


# Locks


def test_two_locks_on_one_file_exclude_each_other(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")

    assert first.try_take()
    assert not second.try_take()
    first.release()
    assert second.try_take()
    second.release()


def test_looking_at_a_lock_does_not_take_it(tmp_path):
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")

    assert not other.is_taken()
    assert lock.try_take()
    assert other.is_taken()
    lock.release()
    assert not other.is_taken()


def test_a_lock_lives_on_in_who_inherited_it(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert lock.try_take()
    inherited = os.dup(lock.descriptor())

    lock.release()

    assert lock.is_taken()
    os.close(inherited)
    assert not lock.is_taken()


def test_the_descriptor_is_there_only_while_the_lock_is_held(tmp_path):
    with pytest.raises(RuntimeError):
        FileLock(tmp_path / "lock").descriptor()


# Processes


def test_a_process_is_known_again_by_its_identity():
    assert HERE is not None
    assert HERE.pid == os.getpid()
    assert HERE.is_alive()


@pytest.mark.parametrize(
    "change", [{"start_ticks": 1}, {"boot_id": "another"}], ids=["reused pid", "another boot"]
)
def test_a_pid_that_was_given_out_again_is_another_process(change):
    stale = dataclasses.replace(HERE, **change)

    assert not stale.is_alive()
    stale.signal(SIGKILL)  # Would end this very process, were the pid all that counted.


def test_there_is_no_identity_of_a_pid_without_a_process():
    assert ProcessIdentity.of(2**22 + 1) is None


def test_who_locks_a_file_is_found_and_who_only_has_it_open_is_not(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with (tmp_path / "lock").open("w"):
        assert processes_locking(lock.path) == []
        assert lock.try_take()
        assert processes_locking(lock.path) == [HERE]
        lock.release()


def test_who_works_in_a_directory_is_found(tmp_path, monkeypatch):
    assert processes_inside(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    assert processes_inside(tmp_path) == [HERE]


# Waiting


async def test_a_condition_that_never_holds_is_given_up():
    assert not await polled(lambda: False, 0.0)


async def test_a_condition_is_asked_until_it_holds():
    answers = iter([False, False, True])
    assert await polled(lambda: next(answers), 10.0)


async def test_an_error_in_a_thread_arrives():
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


# The state directory


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


@pytest.mark.parametrize("owner", [HERE, None], ids=["owned", "detached"])
@pytest.mark.parametrize("sockets", [Path("/a b"), None], ids=["socket", "no socket"])
def test_a_record_comes_back_as_it_was_written(state, owner, sockets):
    record = ServerRecord(process=HERE, owner=owner, port=5432, socket_directory=sockets)

    state.write_record(record)

    assert state.read_record() == record
    assert state.running_record() == record
    assert (state.path / "server.json").stat().st_mode & 0o777 == 0o600


def test_a_record_of_a_process_that_is_gone_is_not_of_a_running_server(state):
    gone = dataclasses.replace(HERE, start_ticks=1)
    record = ServerRecord(process=gone, owner=None, port=5432, socket_directory=None)
    state.write_record(record)

    assert state.read_record() == record
    assert state.running_record() is None


@given(text=st.text() | st.sampled_from(["{}", "[]", "null", '{"process": {"pid": 1}}']))
def test_a_spoilt_record_counts_as_none(text):
    assert ServerRecord.from_json(text) is None


def test_no_record_is_no_error(state):
    assert state.read_record() is None


def test_a_directory_that_is_not_there_is_not_in_use(tmp_path):
    assert not StateDirectory(tmp_path / "none").is_in_use()
    assert not (tmp_path / "none").exists()


def test_too_little_free_space_is_refused_with_the_path_and_the_setting(state):
    state.check_free_space(1)
    with pytest.raises(EmbeddedServerError, match="TENANCY_SERVER_FREE_DISK_MIN_BYTES") as caught:
        state.check_free_space(shutil.disk_usage(state.path).total + 1)
    assert str(state.path) in str(caught.value)


def test_only_the_newest_log_files_are_kept(state):
    state.log.mkdir()
    for age in range(5):
        path = state.log / f"{age}.log"
        path.touch()
        os.utime(path, (1_000 - age, 1_000 - age))

    state.prune_logs(2)

    assert sorted(path.name for path in state.log.iterdir()) == ["0.log", "1.log"]


def test_the_tail_of_the_log_starts_where_it_was_marked(state):
    state.log.mkdir()
    log = state.log / "a.log"
    log.write_text("before\n")
    state.mark_logs()
    with log.open("a") as file:
        file.write("after\n")

    assert "after" in state.log_tail()
    assert "before" not in state.log_tail()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "not writable"),
        (errno.EROFS, "not writable"),
        (errno.ENOTDIR, "in the way"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_an_error_of_the_file_system_says_what_to_do(number, words):
    with (
        pytest.raises(EmbeddedServerError, match=words) as caught,
        state_directory.file_errors(Path("/the/path")),
    ):
        raise OSError(number, os.strerror(number))
    assert "/the/path" in str(caught.value)


def test_a_home_whose_place_a_file_has_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match="in the way"):
        StateDirectory(tmp_path / "file" / "postgres").prepare()


# Secrets


def test_a_secret_is_made_once_and_kept_from_others(tmp_path):
    path = tmp_path / "secrets" / "word"

    first = kept_secret(path)

    assert len(first) == 32
    assert kept_secret(path) == first
    assert kept_secret(path.with_name("other")) != first
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


# Users


def test_root_without_another_user_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    def no_user(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", no_user)

    with pytest.raises(EmbeddedServerError, match="useradd --system"):
        service_user.service_user()


def test_root_without_useradd_takes_a_user_that_is_there(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65533, "", "/", "/bin/false"))

    def only_nobody(name: str) -> pwd.struct_passwd:
        if name != "nobody":
            raise KeyError(name)
        return nobody

    monkeypatch.setattr(pwd, "getpwnam", only_nobody)

    user = service_user.service_user()

    assert user == service_user.ServiceUser(name="nobody", uid=65534, gid=65533)


def test_root_by_another_name_is_not_taken(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    toor = pwd.struct_passwd(("toor", "x", 0, 0, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: toor)

    with pytest.raises(EmbeddedServerError):
        service_user.service_user()


def test_who_is_not_root_runs_servers_itself(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert service_user.service_user() is None


# Access control lists: (tag, permissions, id), tags as in acl(5)

OWNER, USER, GROUP, MASK, OTHER, NOBODY = 0x01, 0x02, 0x04, 0x10, 0x20, 0xFFFFFFFF
PLAIN = [(OWNER, 7, NOBODY), (GROUP, 0, NOBODY), (OTHER, 0, NOBODY)]


def test_one_user_more_may_pass_and_no_one_else():
    changed = access_list.with_search(PLAIN, 7)

    assert changed == [
        (OWNER, 7, NOBODY),
        (USER, 1, 7),
        (GROUP, 0, NOBODY),
        (MASK, 1, NOBODY),
        (OTHER, 0, NOBODY),
    ]
    assert access_list.with_search(changed, 7) == changed


def test_the_rights_that_others_have_stay():
    before = sorted([*PLAIN, (USER, 6, 9), (USER, 4, 7), (MASK, 7, NOBODY)])

    changed = access_list.with_search(before, 7)

    assert (USER, 6, 9) in changed
    assert (USER, 5, 7) in changed
    assert (MASK, 7, NOBODY) in changed


def test_the_mask_is_widened_again_after_a_chmod():
    opened = access_list.with_search(PLAIN, 7)
    closed = [(tag, 0 if tag == MASK else bits, who) for tag, bits, who in opened]

    assert access_list.with_search(closed, 7) == opened


def test_a_mask_that_holds_someone_else_back_is_left_alone():
    with pytest.raises(PermissionError):
        access_list.with_search([*PLAIN, (USER, 1, 9), (MASK, 4, NOBODY)], 7)


# Ports


def test_a_port_that_cannot_be_listened_on_is_not_free(monkeypatch):
    def taken(_socket: socket.socket, _address: object) -> None:
        raise OSError(errno.EADDRINUSE, "taken")

    monkeypatch.setattr(socket, "socket", type("Taken", (socket.socket,), {"bind": taken}))
    assert not is_port_free(5432)
