"""The setup on which every attack has to succeed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_never

import asyncpg
from support.postgres import PostgresServer

from attacks import scene as scenes
from attacks.answer import Answer
from attacks.attack import WeakLogin, WeakPool
from attacks.scene import DirectSession, Party, Scene, connected

_SQL = (Path(__file__).parent / "weak.sql").read_text()
_PASSWORD = "weak"
_LOGINS = ("shared", "owner", "a", "b")


class WeakStage:
    """A database of its own, laid out anew for each attempt."""

    def __init__(self, server: PostgresServer, prefix: str, admin: asyncpg.Connection) -> None:
        self.server = server
        self.prefix = prefix
        self.admin = admin

    @classmethod
    @asynccontextmanager
    async def opened(cls, server: PostgresServer) -> AsyncIterator[WeakStage]:
        """The stage, with its database and its logins, which are dropped at the end."""
        prefix = f"weak_{secrets.token_hex(4)}"
        async with connected(server.admin_dsn) as admin:
            await admin.execute(f"create database {prefix}")
            try:
                async with connected(server.dsn(prefix)) as inside:
                    for name in _LOGINS:
                        inherit = "noinherit" if name == "shared" else "inherit"
                        await admin.execute(
                            f"create role {prefix}_{name} login {inherit} password '{_PASSWORD}'"
                        )
                    await admin.execute(
                        f"grant {prefix}_a, {prefix}_b to {prefix}_shared;"
                        f"grant {prefix}_a to {prefix}_owner"
                    )
                    yield cls(server, prefix, inside)
            finally:
                await admin.execute(f"drop database {prefix} with (force)")
                for name in _LOGINS:
                    await admin.execute(f"drop role {prefix}_{name}")

    @asynccontextmanager
    async def scene(self, login: WeakLogin, pool: WeakPool) -> AsyncIterator[WeakScene]:
        """One attempt, in a fresh layout."""
        await self.admin.execute(
            "drop schema public cascade; create schema public;"
            + _SQL.replace("{p}", self.prefix)
            + "analyze;"
        )
        scene = WeakScene(self, login, pool)
        try:
            async with connected(scene.dsn(login)) as connection:
                scene.connection = connection
                scene.session = DirectSession(connection)
                yield scene
        finally:
            for name in _LOGINS:
                role = f"{self.prefix}_{name}"
                await self.admin.execute(
                    f"alter role {role} reset all; alter role {role} nobypassrls nocreaterole"
                )
            await self.admin.execute(f"revoke {self.prefix}_b from {self.prefix}_owner cascade")


class WeakScene(Scene):
    """One attempt on the weak setup: one session, which attacker and victim take turns in."""

    connection: asyncpg.Connection
    session: DirectSession

    def __init__(self, stage: WeakStage, login: WeakLogin, pool: WeakPool) -> None:
        prefix = stage.prefix
        parties = [
            Party(
                database=prefix,
                schema="public",
                role=f"{prefix}_shared",
                column="tenant",
                value=value,
            )
            for value in ("a", "b")
        ]
        super().__init__(
            {
                "bind": "app.tenant",
                "forged": "b",
                "own": "a",
                "pid": "pg_backend_pid()",
                "own_role": f"{prefix}_a",
                "victim_role": f"{prefix}_b",
                "victim_login": f"{prefix}_shared",
                "strong_role": f"{prefix}_b",
                "by_role": "by_role",
                "own_schema": "public",
                "victim_schema": "public",
                "victim_table": "orders",
                "own_database": prefix,
                "victim_database": prefix,
                "column": "tenant",
                "victim_value": "b",
                "own_value": "a",
                "own_order": str(scenes.OWN_ORDER),
                "victim_order": str(scenes.VICTIM_ORDER),
                "victim_code": scenes.VICTIM_CODE,
                "quoted_victim": "'b'",
                "p": prefix,
            },
            attacker=parties[0],
            victim=parties[1],
            secrets=frozenset({"233", "236", "victim"}),
        )
        self.stage = stage
        self.login = login
        self.pool = pool
        #: For whom the session works now.
        self._turn = ""

    @property
    def is_weak(self) -> bool:
        """Yes."""
        return True

    def dsn(self, login: WeakLogin) -> str:
        """The DSN of one of the setup's logins."""
        server = self.stage.server
        if login is WeakLogin.BOSS:
            return server.dsn(self.stage.prefix)
        return server.dsn(self.stage.prefix, f"{self.stage.prefix}_{login}", _PASSWORD)

    async def send(self, text: str) -> Answer:
        """In the session, which names the attacker when it was the victim's before."""
        await self._hand_to("a")
        return await self.session.send(text)

    async def ask_victim(self, text: str) -> Answer:
        """In the same session, after it was handed over."""
        await self._hand_to("b")
        answer = await self.session.send(self.filled(text))
        if self.connection.is_in_transaction():
            await self.connection.execute("rollback" if answer.failed else "commit")
        return answer

    @asynccontextmanager
    async def direct(
        self, party: Party, database: str | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the shared login that names the party."""
        server = self.stage.server
        dsn = server.dsn(database or party.database, party.role, _PASSWORD)
        async with connected(dsn) as connection:
            await connection.execute(f"set app.tenant = '{party.value}'")
            yield connection

    async def is_held_up(self, text: str) -> bool:
        """Whether the victim is held up in another session of the pool's."""
        async with self.direct(self.victim) as connection:
            try:
                await connection.fetch(self.filled(text), timeout=scenes.PATIENCE_S)
            except TimeoutError:
                return True
        return False

    async def serves_anew(self) -> bool:
        """Whether new connections of the pool's work."""
        try:
            async with self.direct(self.victim) as connection:
                await connection.execute("update tickets set note = note")
        except asyncpg.PostgresError:
            return False
        return True

    async def hand_over(self, connection: asyncpg.Connection) -> None:
        """Name the attacker."""
        await connection.execute("set app.tenant = 'a'")

    async def administrate(self, text: str, party: Party | None = None) -> list[Any]:
        """Run SQL as the superuser."""
        text = self.filled(text)
        if text.count(";"):
            await self.stage.admin.execute(text)
            return []
        return list(await self.stage.admin.fetch(text))

    async def _hand_to(self, value: str) -> None:
        if self._turn == value:
            return
        if self._turn and self.connection.is_in_transaction():
            await self.connection.execute("rollback")
        first, self._turn = not self._turn, value
        naming = f"set app.tenant = '{value}'"
        match self.pool:
            case WeakPool.PLAIN:
                await self.connection.execute(naming)
            case WeakPool.ASYNCPG:
                if not first:
                    await self.connection.reset()
                await self.connection.execute(naming)
            case WeakPool.IN_TRANSACTION:
                await self.connection.execute(f"begin; {naming}")
            case WeakPool.LOCAL:
                await self.connection.execute(
                    naming if value == "b" else f"set local app.tenant = '{value}'"
                )
            case _:
                assert_never(self.pool)
