"""Where an attack takes place: an attacker, a victim, and an administrator who watches.

A scene is one database setup, one way to send SQL, and one attempt. The attacker has one session;
the victim works in the same one where the setup lets a session change hands, else in its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from attacks.answer import Answer, of_postgres_error, of_rows, of_runtime_error
from tenancy.data_isolation.core.errors import TenancyError

#: In every text of the victim's rows, and in nothing of the attacker's.
CANARY = "canary-of-the-victim"
#: How many orders the victim of each level has, the weak one being like that of ROW.
VICTIM_ORDERS = {"row": 233, "schema": 241, "database": 251, "hybrid": 257}
ATTACKER_ORDERS = 3
OWN_ORDER, VICTIM_ORDER, ABSENT_ORDER = 1, 1_001, 77_777
OWN_CODE, VICTIM_CODE, ABSENT_CODE = "code-1", "code-1001", "code-77777"
#: The tables that both have rows in.
TABLES = ("orders", "items", "receipts", "tickets")
#: A statement of the victim that takes longer than that counts as held up.
PATIENCE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Party:
    """A tenant as the administrator knows it: `value` is in `column` of all its rows."""

    database: str
    schema: str
    role: str
    column: str
    value: str


class Scene(ABC):
    """One attempt. `answers` is what the attacker got to see so far."""

    def __init__(
        self, names: Mapping[str, str], *, attacker: Party, victim: Party, secrets: frozenset[str]
    ) -> None:
        """`secrets` are what a tenant must not learn about the victim, in any answer."""
        self.names = dict(names)
        self.attacker = attacker
        self.victim = victim
        self.secrets = secrets
        self.answers: list[Answer] = []

    @property
    @abstractmethod
    def is_weak(self) -> bool:
        """Whether this is the setup on which attacks have to succeed."""

    @abstractmethod
    async def send(self, text: str) -> Answer:
        """Run one statement, or a text with several, in the attacker's session."""

    @abstractmethod
    async def ask_victim(self, text: str) -> Answer:
        """Run one statement for the victim."""

    @abstractmethod
    def direct(self, party: Party, database: str | None = None) -> Any:
        """An asynchronous context: a new connection of a party's login, past the runtime."""

    @abstractmethod
    async def administrate(self, text: str, party: Party | None = None) -> list[Any]:
        """Run SQL as the superuser, in the attacker's database or in a party's."""

    def filled(self, text: str, **more: str) -> str:
        """The text with its names in braces."""
        names = self.names | more
        for name, value in names.items():
            text = text.replace("{" + name + "}", value)
        return text

    async def attack(self, text: str, **more: str) -> Answer:
        """Send one step, and remember its answer."""
        answer = await self.send(self.filled(text, **more))
        self.answers.append(answer)
        return answer

    async def attack_in_turn(self, texts: list[str], **more: str) -> list[Answer]:
        """Send steps one after the other, and remember their answers."""
        return [await self.attack(text, **more) for text in texts]

    async def migrate(self, sql: str) -> None:
        """Bring a migration to the tenants' schema. Raises `SchemaRefusedError`."""
        raise NotImplementedError

    async def starts(self) -> bool:
        """Whether the runtime starts as things are."""
        raise NotImplementedError

    async def serves_anew(self) -> bool:
        """Whether sessions that are opened for the victim from now on work."""
        raise NotImplementedError

    async def hand_over(self, connection: asyncpg.Connection) -> None:
        """Let a connection of the victim's go on as the attacker's, with nothing taken out."""
        raise NotImplementedError

    async def is_noticed(self) -> bool:
        """Whether `tenancy doctor` finds something unsafe."""
        raise NotImplementedError

    async def places_of(self, tenants: list[str]) -> set[str]:
        """Where tenants of those names are put, at the attacker's level; they are gone then."""
        raise NotImplementedError

    @staticmethod
    def around(connection: asyncpg.Connection) -> DirectSession:
        """A connection, with answers in place of exceptions."""
        return DirectSession(connection)

    async def is_held_up(self, text: str) -> bool:
        """Whether an operation of the victim fails or takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return (await self.ask_victim(text)).failed
        except TimeoutError:
            return True

    @staticmethod
    async def is_alive(connection: asyncpg.Connection) -> bool:
        """Whether a session goes on."""
        try:
            return bool(await connection.fetchval("select true"))
        # The last one: the end of the session arrived while the driver began to ask.
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
        ):
            return False

    async def connections_of_attacker(self, wanted: int) -> int:
        """How many connections the attacker's login gets at the same time, of those wanted."""
        async with AsyncExitStack() as stack:
            for count in range(wanted):
                try:
                    connection = await stack.enter_async_context(self.direct(self.attacker))
                    self.note_rows(await connection.fetch("select 1"))
                except asyncpg.PostgresError as error:
                    self.note_error(error)
                    return count
        return wanted

    def note_rows(self, rows: Iterable[Iterable[Any]]) -> None:
        """What the attacker got to see by another way than `attack`."""
        self.answers.append(of_rows(rows))

    def note_error(self, error: Exception) -> None:
        """What the attacker was refused by another way than `attack`."""
        ours = isinstance(error, TenancyError)
        self.answers.append(of_runtime_error(error) if ours else of_postgres_error(error))

    async def untouched_state(self) -> list[str]:
        """`victims_state` before anything has happened."""
        return await self.victims_state()

    async def victims_state(self) -> list[str]:
        """A hash of the victim's rows, and what the victim sees of them."""
        rows = " union all ".join(
            f"select '{table} ' || t::text as row from {self.victim.schema}.{table} t"
            f" where {self.victim.column}::text = '{self.victim.value}'"
            for table in TABLES
        )
        kept = await self.administrate(
            f"select count(*), md5(string_agg(row, '|' order by row)) from ({rows}) r", self.victim
        )
        seen = " union all ".join(
            f"select count(*), min(id), max(id), min(note), max(note) from {table}"
            for table in TABLES
        )
        answer = await self.ask_victim(seen)
        return [str(tuple(kept[0])), f"{answer.rows} {answer.error}"]


class DirectSession:
    """A connection of asyncpg's, with answers in place of exceptions."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def send(self, text: str) -> Answer:
        """Run a statement in the extended protocol, or a text with several in the simple one."""
        try:
            if text.count(";"):
                await self.connection.execute(text)
                return of_rows(())
            text = text.replace("{semicolon}", ";")
            if text.lower().startswith("copy "):
                return await self._copy(text)
            return of_rows(await self.connection.fetch(text))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            return of_postgres_error(error)

    async def _copy(self, text: str) -> Answer:
        """COPY, whose data asyncpg takes and gives by methods of its own."""
        if " from stdin" in text:
            table = text.split()[1]
            columns = text[text.index("(") + 1 : text.index(")")].split(", ")
            data = text.split(" -- ", 1)[1].encode()

            async def source() -> AsyncIterator[bytes]:
                yield data

            await self.connection.copy_to_table(table, source=source(), columns=columns)
            return of_rows(())
        taken: list[bytes] = []

        async def sink(data: bytes) -> None:
            taken.append(data)

        await self.connection.copy_from_query(text.removeprefix("copy ")[1:-11], output=sink)
        return of_rows((line,) for line in b"".join(taken).decode().splitlines())


@asynccontextmanager
async def listening(
    connection: asyncpg.Connection, channel: str
) -> AsyncIterator[Callable[[str], Awaitable[bool]]]:
    """LISTEN on a channel; what the block gets says whether a payload was heard."""
    heard: asyncio.Queue[str] = asyncio.Queue()

    def take(_: object, __: int, ___: str, payload: object) -> None:
        heard.put_nowait(str(payload))

    async def was_heard(payload: str) -> bool:
        # A round trip later everything that was sent before has arrived.
        await connection.execute("select 1")
        with suppress(asyncio.QueueEmpty):
            while True:
                if payload in heard.get_nowait():
                    return True
        return False

    await connection.add_listener(channel, take)
    try:
        yield was_heard
    finally:
        await connection.remove_listener(channel, take)


@asynccontextmanager
async def connected(dsn: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of asyncpg's, ended at the end of the block."""
    # No cache of statements: attacks discard what is prepared behind the driver's back.
    connection = await asyncpg.connect(
        dsn, server_settings=settings or None, timeout=10, statement_cache_size=0
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=5)
