"""The embedded PostgreSQL: it starts, stays, comes back, and says what is in its way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL

import asyncpg
import psutil
import pytest
from blockbuster import BlockBuster, BlockingError
from support.owner_process import owner_process
from support.small_disk import SmallDisk

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine import supervision
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres, PostgresHandle
from tenancy.data_isolation.engine.polling import polled
from tenancy.data_isolation.engine.process_identity import ProcessIdentity, processes_locking
from tenancy.data_isolation.engine.service_user import service_user
from tenancy.data_isolation.engine.state_directory import StateDirectory
from tenancy.data_isolation.engine.supervision import ServerState

IS_ROOT = os.geteuid() == 0
#: No more than this is waited for anything; reached only when a test fails.
PATIENCE_S = 30.0

Server = Callable[..., EmbeddedPostgres]


@asynccontextmanager
async def servers(home: Path, postgres_bin: Path) -> AsyncIterator[Server]:
    """Makes servers of one home, which has none running when the test is over."""
    made: list[EmbeddedPostgres] = []

    def make(*, detached: bool = False, **settings: object) -> EmbeddedPostgres:
        values = {"home": home, "postgres_bin": postgres_bin} | settings
        made.append(EmbeddedPostgres(Settings(**values), detached=detached))
        return made[-1]

    yield make
    for one in made:
        await one.stop()
    await make().shut_down()


@pytest.fixture
async def new_server(home: Path, postgres_bin: Path) -> AsyncIterator[Server]:
    """Makes servers of a home that does not exist yet."""
    async with servers(home, postgres_bin) as make:
        yield make


@pytest.fixture(scope="session")
def made_home(postgres_bin: Path) -> Iterator[Path]:
    """A home whose cluster is made."""
    directory = Path(tempfile.mkdtemp(prefix="tenancy-test-"))

    async def make() -> None:
        async with servers(directory / "home", postgres_bin) as new:
            await new().start()

    asyncio.run(make())
    yield directory / "home"
    shutil.rmtree(directory)


@pytest.fixture
def home(home: Path, request: pytest.FixtureRequest) -> Path:
    """The home of the servers that the test makes."""
    if "server" in request.fixturenames:
        made: Path = request.getfixturevalue("made_home")
        return made
    return home


@pytest.fixture
async def server(home: Path, postgres_bin: Path) -> AsyncIterator[Server]:
    """Makes servers of the home that tests share, since to make a cluster takes time."""
    async with servers(home, postgres_bin) as make:
        yield make


@pytest.fixture
def state(home: Path) -> StateDirectory:
    return StateDirectory(home / "postgres")


async def ask(handle: PostgresHandle, query: str, *arguments: object) -> object:
    """The first value of the query's answer."""
    connection = await asyncpg.connect(handle.dsn)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


async def keep_a_row(handle: PostgresHandle) -> None:
    await ask(handle, "create table if not exists kept as select 42 as answer")


async def the_row_is_there(handle: PostgresHandle) -> bool:
    return await ask(handle, "select answer from kept") == 42


def ended(state: StateDirectory) -> Callable[[], bool]:
    return lambda: not state.is_in_use()


# Starting and stopping


async def test_what_was_written_is_there_after_a_restart(server, state):
    postgres = server()
    first = await postgres.start()
    await keep_a_row(first)
    await postgres.stop()
    assert not state.is_in_use()

    second = await postgres.start()

    assert await the_row_is_there(second)
    assert second.dsn == first.dsn
    assert second.pid != first.pid


async def test_starting_twice_is_starting_once(server):
    postgres = server()
    assert await postgres.start() == await postgres.start()


async def test_nothing_holds_up_the_event_loop(new_server):
    server = new_server()
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


async def test_the_status_tells_what_is_there(new_server, home):
    postgres = new_server()
    assert postgres.status().state is ServerState.STOPPED
    assert not await postgres.health()
    assert not home.exists()

    handle = await postgres.start()

    status = postgres.status()
    assert (status.state, status.handle) == (ServerState.RUNNING, handle)
    assert status.log_file.is_file()
    assert await postgres.health()
    await postgres.stop()
    assert postgres.status().state is ServerState.STOPPED
    assert postgres.status().handle is None
    assert not await postgres.health()


async def test_the_server_keeps_what_it_acknowledged_and_no_secret(new_server):
    handle = await new_server().start()

    wanted = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "listen_addresses": "127.0.0.1",
        "max_connections": "100",
        "log_statement": "none",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
    }
    found = {name: await ask(handle, "select current_setting($1)", name) for name in wanted}
    assert found == wanted
    verifier = await ask(handle, "select rolpassword from pg_authid where rolname = current_user")
    assert str(verifier).startswith("SCRAM-SHA-256$")


async def test_texts_are_ordered_by_code_point_and_letters_have_cases(server, postgres_bin):
    handle = await server().start()

    assert await ask(handle, "select 'a' > 'B' collate \"default\"")
    version = int(await ask(handle, "select current_setting('server_version_num')")) // 10_000
    if version >= 17:
        assert await ask(handle, "select upper('ä')") == "Ä"


async def test_nobody_gets_in_without_the_password(server):
    handle = await server().start()
    user = "tenancy_admin"
    for host in ("127.0.0.1", str(handle.socket_directory)):
        for password in ("", "wrong"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                await asyncpg.connect(
                    host=host, port=handle.port, user=user, password=password, database="postgres"
                )


async def test_the_unix_socket_answers_to_the_password(server):
    postgres = server()
    handle = await postgres.start()
    connection = await asyncpg.connect(
        host=str(handle.socket_directory),
        port=handle.port,
        user="tenancy_admin",
        password=postgres.status().password_file.read_text().strip(),
        database="postgres",
    )
    try:
        assert await connection.fetchval("select inet_server_addr() is null")
    finally:
        await connection.close()


async def test_the_password_is_in_one_file_of_ours_and_nowhere_else(server, home, caplog):
    postgres = server()
    handle = await postgres.start()
    status = postgres.status()
    password = status.password_file.read_text().strip()

    assert password in handle.dsn
    assert stat.S_IMODE(status.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(status.password_file.parent.stat().st_mode) == 0o700
    shown = [repr(handle), repr(status), str(handle.server_config()), caplog.text]
    processes = [*psutil.Process(handle.pid).parents(), psutil.Process(handle.pid)]
    shown += [str(process.cmdline()) for process in processes]
    files = [path for path in (home / "postgres").glob("*") if path.is_file()]
    files += list((home / "postgres" / "log").iterdir())
    shown += [path.read_text() for path in files]
    assert not [text for text in shown if password in text]


async def test_no_value_of_a_tenant_gets_into_the_log(server, state):
    handle = await server().start()
    connection = await asyncpg.connect(handle.dsn)
    await connection.execute("create table person (email text primary key)")
    await connection.execute("insert into person values ($1)", "ada@secret.example")
    for statement in (
        "insert into person values ('ada@secret.example')",
        "select 'ada@secret.example'::int",
        "select 'ada@secret.example' frm nowhere",
    ):
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
    with pytest.raises(asyncpg.PostgresError):
        await connection.fetchval("select 1 / (length($1::text) - 18)", "ada@secret.example")
    await connection.close()

    logged = "".join(path.read_text() for path in state.log.iterdir())

    assert "ready to accept connections" in logged
    assert "secret.example" not in logged


async def test_the_environment_of_this_process_is_not_the_servers(server, monkeypatch):
    monkeypatch.setenv("TENANCY_MASTER_KEY", "00" * 32)
    monkeypatch.setenv("PGPORT", "1")
    handle = await server().start()

    environment = psutil.Process(handle.pid).environ()

    assert set(environment) <= {"PATH", "LD_LIBRARY_PATH", "LC_ALL", "TZ", "PWD", "PGDATA"} | {
        name for name in environment if name.startswith("PG") and name != "PGPORT"
    }


async def test_old_log_files_are_removed(server, state):
    postgres = server()
    await postgres.start()
    for number in range(20):
        old = state.log / f"postgresql-2000{number:02}.log"
        old.touch()
        os.utime(old, (number, number))

    assert await postgres.health()

    assert len(list(state.log.iterdir())) == 8
    assert postgres.status().log_file.exists()


async def test_a_deep_home_gets_its_socket_elsewhere(new_server, home):
    deep = home / ("d" * 60) / ("e" * 60)
    postgres = new_server(home=deep)
    handle = await postgres.start()
    sockets = handle.socket_directory

    assert sockets.parent == Path("/tmp")
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert (sockets / f".s.PGSQL.{handle.port}").is_socket()
    await postgres.stop()
    assert not sockets.exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root runs servers as another user")
async def test_root_runs_the_server_as_another_user_through_closed_directories(new_server, home):
    closed = home.parent / "closed"
    closed.mkdir(mode=0o700)

    handle = await new_server(home=closed / "home").start()

    assert psutil.Process(handle.pid).uids().real == service_user().uid != 0
    assert psutil.Process(handle.pid).gids().real != 0
    assert stat.S_IMODE(closed.stat().st_mode) & 0o007 == 0


# Who the server belongs to


async def test_who_only_attached_does_not_end_the_server(server, state):
    owner, guest = server(), server()
    handle = await owner.start()

    assert await guest.start() == handle
    await guest.stop()

    assert await owner.health()
    await owner.stop()
    assert not state.is_in_use()


async def test_the_server_ends_with_the_process_that_started_it(server, state, home, postgres_bin):
    async with owner_process("postgres", "wait", home, postgres_bin) as owner:
        told = await owner.told()
        assert server().status().handle.pid == told["pid"]
        await owner.end()

    assert await polled(ended(state), PATIENCE_S)


async def test_a_detached_server_outlives_who_started_it(server, state, home, postgres_bin):
    async with owner_process("postgres", "detach", home, postgres_bin) as owner:
        told = await owner.told()
        await owner.end()

    guest = server()
    handle = await guest.start()
    assert handle.pid == told["pid"]
    await guest.stop()
    assert await guest.health()
    assert await guest.shut_down()
    assert not state.is_in_use()
    assert not await guest.shut_down()


async def test_a_server_that_stays_is_not_made_of_one_that_goes(server):
    await server().start()
    with pytest.raises(EmbeddedServerError, match=f"ends with the process {os.getpid()}"):
        await server(detached=True).start()


async def test_two_that_start_at_once_end_with_one_server(server, home, postgres_bin):
    async with (
        owner_process("postgres", "wait", home, postgres_bin) as first,
        owner_process("postgres", "wait", home, postgres_bin) as second,
    ):
        told = await asyncio.gather(first.told(), second.told())
        assert told[0] == told[1]
        running = [
            process.pid
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "postgres"
            and str(home / "postgres" / "data") in (process.info["cmdline"] or [])
        ]
        assert running == [told[0]["pid"]]


async def test_an_idle_transaction_does_not_hold_up_the_end(server, state):
    postgres = server()
    handle = await postgres.start()
    connection = await asyncpg.connect(handle.dsn)
    await connection.execute("begin; create table lost ()")

    await postgres.stop()

    assert not state.is_in_use()
    connection.terminate()
    assert await ask(await postgres.start(), "select to_regclass('lost') is null")


# Violent ends


async def test_what_was_acknowledged_survives_the_death_of_the_owner(
    new_server, state, home, postgres_bin
):
    async with owner_process("postgres", "write", home, postgres_bin) as owner:
        await owner.told()
        acknowledged = [(await owner.told())["number"] for _ in range(50)]
        acknowledged += [told["number"] for told in await owner.kill()]

    handle = await new_server().start()

    assert await ask(handle, "select array_agg(number) @> $1 from row_written", acknowledged)


async def test_a_server_whose_owner_is_gone_is_started_anew(server, state, home, postgres_bin):
    async with owner_process("postgres", "write", home, postgres_bin) as owner:
        orphan = await owner.told()
        number = (await owner.told())["number"]
        # Without the shell that waits with it, the server does not notice the end of its owner.
        for process in processes_locking(state.server.path):
            if psutil.Process(process.pid).name() == "sh":
                process.signal(SIGKILL)
        await owner.kill()
    assert ProcessIdentity.of(orphan["pid"]) is not None

    handle = await server().start()

    assert handle.pid != orphan["pid"]
    assert ProcessIdentity.of(orphan["pid"]) is None
    assert await ask(handle, "select count(*) from row_written where number = $1", number) == 1


async def test_a_killed_postmaster_is_replaced_though_its_children_are_busy(server, state):
    postgres = server()
    handle = await postgres.start()
    await keep_a_row(handle)
    busy = await asyncpg.connect(handle.dsn)
    pid = busy.get_server_pid()
    work = asyncio.create_task(busy.fetchval("select count(*) from generate_series(1, 1e12)"))
    assert await polled(lambda: psutil.Process(pid).cpu_times().user > 0.05, PATIENCE_S)

    os.kill(handle.pid, SIGKILL)
    assert await polled(lambda: postgres.status().state is ServerState.ORPHANED, PATIENCE_S)
    assert not await postgres.health()
    with pytest.raises(EmbeddedServerError, match="in use"):
        postgres._supervisor._spawn(None, 1, None)  # Control: the children are in the way.
    again = await postgres.start()

    assert await the_row_is_there(again)
    assert ProcessIdentity.of(pid) is None
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await work
    busy.terminate()


async def test_all_its_processes_killed_at_once_cost_no_row(server, state):
    postgres = server()
    handle = await postgres.start()
    await keep_a_row(handle)
    for process in processes_locking(state.server.path):
        if process.pid != os.getpid():
            process.signal(SIGKILL)

    again = await postgres.start()

    assert await the_row_is_there(again)
    assert (state.data / "postmaster.pid").exists()


async def test_a_server_without_its_record_is_ended_and_started_anew(server, state):
    postgres = server()
    handle = await postgres.start()
    await keep_a_row(handle)
    (state.path / "server.json").unlink()
    assert postgres.status().state is ServerState.ORPHANED

    again = await server().start()

    assert again.pid != handle.pid
    assert await the_row_is_there(again)


async def test_a_pid_file_that_names_another_process_is_not_believed(server, state):
    postgres = server()
    await keep_a_row(await postgres.start())
    await postgres.stop()
    user = service_user()
    # PostgreSQL takes any process of its own user for the server; this one is of that user.
    with subprocess.Popen(
        ["sleep", "600"], cwd="/", **(user.spawn_arguments() if user else {})
    ) as other:
        pid_file = state.data / "postmaster.pid"
        pid_file.write_text(f"{other.pid}\n{state.data}\n1\n5432\n\n*\n")
        if user:
            user.own(pid_file)
        refused = subprocess.run(
            [postgres._program._binaries.postgres, "-D", state.data],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **(user.spawn_arguments() if user else {}),
        )
        try:
            assert f"PID {other.pid}" in refused.stderr  # Control: by itself it would not start.
            assert await the_row_is_there(await postgres.start())
            assert other.poll() is None
        finally:
            other.kill()


async def test_a_cancelled_start_leaves_no_server(new_server, state):
    postgres = new_server()
    making = asyncio.create_task(postgres.start())
    assert await polled(lambda: state.path.is_dir() and state.is_in_use(), PATIENCE_S)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not state.is_in_use()
    assert list(state.path.glob("data*")) == []

    await postgres.start()
    await postgres.stop()
    starting = asyncio.create_task(postgres.start())
    assert await polled(state.is_in_use, PATIENCE_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not state.is_in_use()
    await postgres.start()


async def test_a_start_that_takes_too_long_is_given_up(new_server, state):
    with pytest.raises(EmbeddedServerError, match="TENANCY_SERVER_START_TIMEOUT_S"):
        await new_server(server_start_timeout_s=0.001).start()
    assert not state.is_in_use()


# The data directory


async def test_a_making_that_was_killed_is_made_anew(new_server, state, home, postgres_bin):
    async with owner_process("postgres", "wait", home, postgres_bin) as owner:
        assert await polled(lambda: any(state.path.glob("data.making-*/data/base")), PATIENCE_S)
        await owner.kill()
    assert not state.data.exists()

    handle = await new_server().start()

    assert await ask(handle, "select true")
    assert list(state.path.glob("data.*")) == []


async def test_a_half_made_cluster_is_moved_aside(new_server, state):
    (state.data / "global").mkdir(parents=True)
    (state.data / "PG_VERSION").write_text("18\n")

    handle = await new_server().start()

    assert await ask(handle, "select true")
    (aside,) = state.path.glob("data.aside-*")
    assert (aside / "PG_VERSION").read_text() == "18\n"


async def test_a_damaged_cluster_is_never_replaced(new_server, state):
    (state.data / "base" / "16384").mkdir(parents=True)
    (state.data / "PG_VERSION").write_text("18\n")
    before = sorted(state.data.rglob("*"))

    with pytest.raises(EmbeddedServerError, match="restore it from a backup") as caught:
        await new_server().start()

    assert str(state.data) in str(caught.value)
    assert sorted(state.data.rglob("*")) == before


async def test_a_cluster_of_someone_else_is_not_used(new_server, state):
    postgres = new_server()
    await postgres.start()
    await postgres.stop()
    (state.data / "tenancy.cluster").unlink()

    with pytest.raises(EmbeddedServerError, match="did not make"):
        await postgres.start()


async def test_a_cluster_of_another_version_is_refused(new_server, state):
    postgres = new_server()
    await postgres.start()
    await postgres.stop()
    (state.data / "PG_VERSION").write_text("14\n")

    with pytest.raises(EmbeddedServerError, match="PostgreSQL 14") as caught:
        await postgres.start()
    assert "TENANCY_POSTGRES_BIN" in str(caught.value)


async def test_a_server_started_by_hand_in_the_directory_is_not_disturbed(
    server, state, postgres_bin
):
    postgres = server()
    handle = await postgres.start()
    await keep_a_row(handle)
    await postgres.stop()
    user = service_user()
    control = [postgres_bin / "pg_ctl", "-D", state.data, "-w"]
    by_hand = {"cwd": "/", "check": True, "stdout": subprocess.DEVNULL}
    by_hand |= user.spawn_arguments() if user else {}
    options = f"-p {handle.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    log = ["-l", state.data / "by-hand.log"]
    await asyncio.to_thread(subprocess.run, [*control, *log, "-o", options, "start"], **by_hand)
    try:
        pid = (state.data / "postmaster.pid").read_text().split()[0]
        with pytest.raises(EmbeddedServerError, match=f"in use by the process {pid}"):
            await postgres.start()
        assert await the_row_is_there(handle)
    finally:
        await asyncio.to_thread(subprocess.run, [*control, "-m", "fast", "stop"], **by_hand)
    assert await the_row_is_there(await postgres.start())


async def test_a_lost_password_file_is_named_and_not_made_anew(new_server):
    postgres = new_server()
    await postgres.start()
    await postgres.stop()
    path = postgres.status().password_file
    kept = path.read_text()
    path.unlink()

    with pytest.raises(EmbeddedServerError, match="is gone") as caught:
        await postgres.start()
    assert str(path) in str(caught.value)
    assert not path.exists()

    path.write_text("of another cluster")
    with pytest.raises(EmbeddedServerError, match="is not that of tenancy_admin"):
        await postgres.start()
    path.write_text(kept)
    assert await postgres.start()


# The machine


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


async def test_a_port_in_use_is_named(server, state, taken_port):
    with pytest.raises(EmbeddedServerError, match="TENANCY_POSTGRES_PORT") as caught:
        await server(postgres_port=taken_port).start()
    assert f"127.0.0.1:{taken_port}" in str(caught.value)
    assert not state.is_in_use()


async def test_a_port_that_is_taken_after_the_look_is_found_out_from_the_server(server, state):
    postgres = server()
    port = (await postgres.start()).port
    await postgres.stop()
    user = await asyncio.to_thread(state.prepare)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(supervision._PortTakenError):
            await postgres._supervisor._started_on(port, user)
        assert not state.is_in_use()
        assert (await postgres.start()).port != port


async def test_the_port_that_was_asked_for_is_used_or_refused(server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    postgres = server(postgres_port=port)
    assert (await postgres.start()).port == port

    with pytest.raises(EmbeddedServerError, match=f"already .* on port {port}"):
        await server(postgres_port=port + 1 if port < 65_535 else port - 1).start()


async def test_a_home_that_cannot_be_written_is_named(new_server, tmp_path):
    # Root may write everywhere but in the kernel's own file system.
    home = Path("/proc/tenancy") if IS_ROOT else tmp_path / "closed" / "home"
    if not IS_ROOT:
        home.parent.mkdir(mode=0o500)
    with pytest.raises(EmbeddedServerError, match="TENANCY_HOME") as caught:
        await new_server(home=home).start()
    assert str(home) in str(caught.value)


async def test_a_read_only_disk_is_named(small_disk: SmallDisk, new_server):
    small_disk.mount(64)
    small_disk.make_read_only()
    with pytest.raises(EmbeddedServerError, match="not writable") as caught:
        await new_server(home=small_disk.path).start()
    assert str(small_disk.path) in str(caught.value)


async def test_too_little_space_is_told_before_anything_is_made(new_server, state):
    with pytest.raises(EmbeddedServerError, match="MiB left") as caught:
        await new_server(server_free_disk_min_bytes=1 << 60).start()
    assert str(state.path) in str(caught.value)
    assert not state.data.exists()


async def test_a_disk_that_fills_up_while_the_cluster_is_made(small_disk: SmallDisk, new_server):
    small_disk.mount(16)
    with pytest.raises(EmbeddedServerError, match="is full") as caught:
        await new_server(home=small_disk.path / "home", server_free_disk_min_bytes=1).start()
    assert str(small_disk.path) in str(caught.value)
    assert not list((small_disk.path / "home" / "postgres").glob("data*"))


async def test_a_disk_that_is_full_when_the_server_starts(small_disk: SmallDisk, new_server):
    small_disk.mount(200)
    postgres = new_server(home=small_disk.path / "home", server_free_disk_min_bytes=1)
    await keep_a_row(await postgres.start())
    await postgres.stop()
    # Files of the server's caches, which it makes again for whom it lets in.
    for path in (small_disk.path / "home/postgres/data").rglob("pg_internal.init"):
        path.unlink()
    small_disk.fill(spare_bytes=32 * 1024)

    with pytest.raises(EmbeddedServerError, match="is full") as caught:
        await postgres.start()
    assert str(small_disk.path) in str(caught.value)

    small_disk.make_room()
    assert await the_row_is_there(await postgres.start())
    await postgres.stop()


async def test_binaries_that_are_not_there_are_named(new_server, tmp_path):
    with pytest.raises(EmbeddedServerError, match="TENANCY_POSTGRES_BIN") as caught:
        await new_server(postgres_bin=tmp_path).start()
    assert str(tmp_path) in str(caught.value)


async def test_binaries_that_do_not_run_are_named(new_server, tmp_path):
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be run by"):
        await new_server(postgres_bin=tmp_path).start()


@pytest.mark.parametrize("version", ["PostgreSQL) 14.1", "PostgreSQL) 99.0", "no version"])
async def test_binaries_of_a_version_that_is_not_known_are_refused(new_server, tmp_path, version):
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'postgres ({version}'\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"versions 15 to 18|does not tell"):
        await new_server(postgres_bin=tmp_path).start()


async def test_what_is_written_about_the_server_is_json(server, state):
    handle = await server().start()
    record = json.loads((state.path / "server.json").read_text())
    assert (record["process"]["pid"], record["port"]) == (handle.pid, handle.port)
    assert record["owner"]["pid"] == os.getpid()
