"""What a tenant and its neighbours notice of a move, and how fast rows are copied.

Run by `make bench-moves`, with two servers of its own. A tenant is used at a steady rate while it
is moved again and again; its pause is the longest gap between two acknowledgements around the
moment at which it changes its place. The gap that there is without a move is measured in the same
run, and so is a plain COPY of the same rows between the same servers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Operation,
    ServerConfig,
    Settings,
    TenantContext,
    TenantType,
)
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.engine import Engine

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
TABLES = """
create table items (
    id    bigint generated always as identity primary key,
    owner integer not null,
    name  text not null,
    price integer not null
);
create index items_by_owner on items (owner);
"""
CLIENTS = 8
OPERATIONS_PER_S = 500
PAUSE_SAME_MS, PAUSE_OTHER_MS = 20, 50
DIP_MAX = 0.10
DIP_ROWS, DIP_MOVES, DIP_USUAL_S = 100_000, 7, 5.0
COPY_ROWS_PER_S = 100_000
FILL_ROWS = 100_000
WAIT_S = 900.0
#: Pauses of small moves, what a neighbour notices of a large one, and a tenant of a million rows.
PARTS = ("pauses", "dip", "million")


class Load:
    """Clients that read and write one tenant at a rate (None = as fast as they can)."""

    def __init__(self, engine: Engine, tenant: str, rate_per_s: float | None) -> None:
        self._engine = engine
        self._tenant = tenant
        self._interval_s = CLIENTS / rate_per_s if rate_per_s else 0.0
        self.acknowledged: list[float] = []
        self.errors: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """The clients are at work within the block."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _client(self, number: int) -> None:
        write = Operation(
            query="update items set price = price + 1 where id = $1", params=[number + 1]
        )
        read = Operation(query="select name, price from items where id = $1", params=[number + 1])
        next_at = time.monotonic()
        for turn in range(1_000_000_000):
            if self._interval_s:
                next_at = max(next_at + self._interval_s, time.monotonic() - self._interval_s)
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            try:
                await self._engine.execute(self._tenant, read if turn % 2 else write)
                self.acknowledged.append(time.monotonic())
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                raise

    def check(self) -> None:
        """Raise `SystemExit` when an operation failed."""
        if self.errors:
            told = f"{len(self.errors)} operations of {self._tenant} failed, one of them with "
            raise SystemExit(told + self.errors[0])

    def longest_gap_ms(self, began: float, ended: float) -> float:
        """The longest time between two acknowledgements."""
        inside = [at for at in self.acknowledged if began <= at <= ended]
        points = [began, *inside, ended]
        return max(later - at for at, later in itertools.pairwise(points)) * 1_000

    def rate(self, began: float, ended: float) -> float:
        """Acknowledgements per second."""
        return sum(began <= at <= ended for at in self.acknowledged) / (ended - began)


async def _filled(engine: Engine, tenant: str, level: IsolationLevel, rows: int) -> None:
    # Nobody's rate is limited: it is to be the machine that sets the bounds.
    context = TenantContext(tenant_id=tenant, tenant_type=TenantType.ENTERPRISE)
    await engine.create_tenant(context, level=level, server=ServerName("main"))
    for start in range(0, rows, FILL_ROWS):
        await engine.execute(
            tenant,
            Operation(
                query="insert into items (owner, name, price) "
                "select n % 1000, 'item ' || n, n from generate_series($1::integer, $2::integer) n",
                params=[start + 1, min(start + FILL_ROWS, rows)],
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """One move: when it began, when it was open, and how its moment went. Times in s and ms.

    `copy_s` is the first copy alone, and `carry_s` has the passes and comparisons as well.
    """

    began: float
    opened: float
    rows: int
    copy_s: float
    carry_s: float
    drain_ms: float
    held_ms: float


async def _move(engine: Engine, tenant: str, **target: object) -> Moved:
    """Move a tenant, and wait until all is cleaned up."""
    began = time.monotonic()
    move = await engine.moves.start(tenant, MoveTarget(**target))  # type: ignore[arg-type]
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    if move.state is not MoveState.OPEN:
        raise SystemExit(f"the move came to nothing: {move.state}, {move.error}")
    opened = time.monotonic()
    await engine.moves.confirm(move.move_id)
    move = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    cutover, progress = move.report["cutover"], move.progress
    return Moved(
        began=began,
        opened=opened,
        rows=progress.rows_copied,
        copy_s=progress.copy_s,
        carry_s=progress.copy_s + progress.prove_s,
        drain_ms=cutover["drain_ms"],
        held_ms=cutover["held_ms"],
    )


async def _pauses(
    engine: Engine, count: int, *, other_server: bool
) -> tuple[list[float], list[float], list[float]]:
    """The longest gaps around moves and in windows without one, and for how long it was held."""
    tenant = f"used-{'far' if other_server else 'near'}"
    await _filled(engine, tenant, ROW, 2_000)
    levels, servers = [SCHEMA, DATABASE, ROW], ["second", "main"]
    gaps, usual, held = [], [], []
    async with Load(engine, tenant, OPERATIONS_PER_S).running() as load:
        await asyncio.sleep(1.0)
        for turn in range(count):
            quiet = time.monotonic()
            await asyncio.sleep(1.0)
            usual.append(load.longest_gap_ms(quiet, quiet + 1.0))
            target: dict[str, object] = {"level": levels[turn % 3]}
            if other_server:
                target["server"] = ServerName(servers[turn % 2])
            moved = await _move(engine, tenant, **target)
            gaps.append(load.longest_gap_ms(moved.opened - 0.8, moved.opened + 0.2))
            held.append(moved.drain_ms + moved.held_ms)
    load.check()
    return gaps, usual, held


async def _dip(engine: Engine) -> list[Figure]:
    """The share of a neighbour's throughput that goes while a large tenant is moved.

    What is usual is measured before and after each move, since the machine itself has its moods.
    """
    await _filled(engine, "neighbour", ROW, 2_000)
    await _filled(engine, "large", ROW, DIP_ROWS)
    shares, took = [], []
    async with Load(engine, "neighbour", None).running() as load:
        await asyncio.sleep(2.0)
        for level in itertools.islice(itertools.cycle((SCHEMA, ROW)), DIP_MOVES):
            before = time.monotonic()
            await asyncio.sleep(DIP_USUAL_S)
            moved = await _move(engine, "large", level=level)
            after = time.monotonic()
            await asyncio.sleep(DIP_USUAL_S)
            usual = (load.rate(before, moved.began) + load.rate(after, after + DIP_USUAL_S)) / 2
            shares.append(1 - load.rate(moved.began, moved.opened) / usual)
            took.append(moved.opened - moved.began)
    load.check()
    return [
        figure(
            "throughput dip of a neighbour", statistics.median(shares), "share", at_most=DIP_MAX
        ),
        figure("largest throughput dip of a neighbour", max(shares), "share"),
        figure(f"move of {DIP_ROWS} rows beside it until open", statistics.median(took), "s"),
    ]


async def _million(engine: Engine, servers: dict[str, str], rows: int) -> list[Figure]:
    """A large tenant to another server and back, each in one go, and the same by plain COPY.

    Nobody else is at work on the way there, as there is nobody beside the plain COPY; on the way
    back the tenant is in use.
    """
    await _filled(engine, "million", ROW, rows)
    plain = await _plain_copy(servers, rows)
    there = await _move(engine, "million", level=SCHEMA, server=ServerName("second"))
    async with Load(engine, "million", OPERATIONS_PER_S).running() as load:
        await asyncio.sleep(1.0)
        back = await _move(engine, "million", level=ROW, server=ServerName("main"))
        await asyncio.sleep(0.5)
    load.check()
    pause = load.longest_gap_ms(back.opened - 0.8, back.opened + 0.2)
    goal = min(COPY_ROWS_PER_S, plain / 2)
    return [
        figure("rows of the tenant that moved in one go", there.rows, "rows", at_least=1_000_000),
        figure("move of that tenant until open", there.opened - there.began, "s"),
        figure("plain COPY between the servers", plain, "rows/s"),
        figure("copy rate", there.rows / there.copy_s, "rows/s", at_least=goal),
        figure("copy rate against plain COPY", there.rows / there.copy_s / plain, "x"),
        figure("rate of copying and comparing", there.rows / there.carry_s, "rows/s"),
        figure("move of that tenant in use until open", back.opened - back.began, "s"),
        figure("copy rate in use", back.rows / back.copy_s, "rows/s"),
        figure("pause of that tenant in use", pause, "ms", at_most=PAUSE_OTHER_MS),
        figure("held, that tenant in use", back.drain_ms + back.held_ms, "ms"),
        figure(
            "longest gap of that tenant while it moved",
            load.longest_gap_ms(back.began, back.opened),
            "ms",
        ),
    ]


async def _plain_copy(servers: dict[str, str], rows: int) -> float:
    """COPY out of one server and into a table with the same indexes at the other."""
    source = await asyncpg.connect(servers["main"])
    target = await asyncpg.connect(servers["second"])
    try:
        await source.execute("create schema plain")
        await target.execute("create schema plain")
        columns = "tenant_id bigint, id bigint, owner integer, name text, price integer"
        for connection in (source, target):
            await connection.execute(
                f"create table plain.items ({columns}, primary key (tenant_id, id)); "
                "create index on plain.items (tenant_id, owner)"
            )
        await source.execute(
            "insert into plain.items select 1, n, n % 1000, 'item ' || n, n "
            f"from generate_series(1, {rows}) n"
        )
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(16)

        async def read() -> None:
            await source.copy_from_query(
                "select * from plain.items", output=queue.put, format="binary"
            )
            await queue.put(None)

        async def parts() -> AsyncIterator[bytes]:
            while (part := await queue.get()) is not None:
                yield part

        began = time.monotonic()
        await asyncio.gather(
            read(),
            target.copy_to_table("items", schema_name="plain", source=parts(), format="binary"),
        )
        return rows / (time.monotonic() - began)
    finally:
        for connection in (source, target):
            await connection.execute("drop schema if exists plain cascade")
            await connection.close()


@contextlib.asynccontextmanager
async def _engine(home: Path) -> AsyncIterator[tuple[Engine, dict[str, str]]]:
    """An engine over two embedded servers, and their DSNs for the shared database."""
    async with contextlib.AsyncExitStack() as stack:
        configs = []
        settings = Settings(home=home / "main", move_follow_s=0.2, result_rows_max=1_000_000)
        for name in ("main", "second"):
            server = EmbeddedPostgres(dataclasses.replace(settings, home=home / name))
            stack.push_async_callback(server.stop)
            handle = await server.start()
            configs.append(ServerConfig(name=name, dsn=handle.server_config().dsn))
        config = EngineConfig(servers=tuple(configs), settings=settings)
        engine = await stack.enter_async_context(await Engine.open(config))
        await engine.apply_migration("0001_items", TABLES)
        engine.moves.work()
        yield engine, {item.name: item.dsn for item in configs}


async def _both_pauses(engine: Engine, moves: int) -> list[Figure]:
    figures: list[Figure] = []
    for name, other, goal in (
        ("same server", False, PAUSE_SAME_MS),
        ("other server", True, PAUSE_OTHER_MS),
    ):
        gaps, usual, held = await _pauses(engine, moves, other_server=other)
        figures += [
            figure(f"pause p95, {name}", percentile(gaps, 95), "ms", at_most=goal),
            figure(f"pause p50, {name}", percentile(gaps, 50), "ms"),
            figure(f"held p50, {name}", percentile(held, 50), "ms"),
            figure(f"held p95, {name}", percentile(held, 95), "ms"),
            figure(f"longest gap without a move p95, {name}", percentile(usual, 95), "ms"),
            figure(f"longest gap without a move p50, {name}", percentile(usual, 50), "ms"),
        ]
    return figures


async def _measure(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        async with _engine(Path(home)) as (engine, servers):
            if "pauses" in arguments.parts:
                figures += await _both_pauses(engine, arguments.moves)
            if "dip" in arguments.parts:
                figures += await _dip(engine)
            if "million" in arguments.parts:
                figures += await _million(engine, servers, arguments.rows)
    return figures


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default all)"
    )
    parser.add_argument("--moves", type=int, default=21, help="moves per kind (default 21)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large tenant")
    print_report(asyncio.run(_measure(parser.parse_args())))


if __name__ == "__main__":
    main()
