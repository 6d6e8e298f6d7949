"""Clients that work on one tenant at the same time, with all kinds of calls mixed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from support.history.call import (
    BUCKET_ITEMS,
    Account,
    Action,
    AddItem,
    Append,
    Call,
    ReadBank,
    ReadItems,
    ReadJournal,
    ReadList,
    ReadRegister,
    Swap,
    Transfer,
    Write,
)
from support.history.client import Client
from support.history.executor import Executor
from support.history.pace import Pace, pause
from support.history.statements import CURRENT, SAVINGS, opening_statements
from tenancy.data_isolation.core.errors import TenancyError

#: Lists and registers that are in use at the same time.
_KEYS: Final = 3
#: Appends to a list, and calls on a register, before another takes its place: long histories of
#: one key are slow to check, and long lists slow to write.
_LIST_CALLS_MAX: Final = 48
_REGISTER_CALLS_MAX: Final = 48
_CLEANING_S: Final = 20.0
_FINAL_ATTEMPTS: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the clients of a tenant do.

    `rate_per_s` bounds the calls of all of them together. A client thinks for up to `think_s`
    seconds between two calls. `keyed_share` of the writes have an idempotency key; `hasty_share`
    of the writes are given up after up to `patience_s` seconds, as by a client that hangs up.
    """

    writers: int = 4
    readers: int = 4
    rate_per_s: float | None = None
    think_s: float = 0.002
    keyed_share: float = 0.3
    hasty_share: float = 0.0
    patience_s: float = 0.003
    #: Accounts in each of the two tables, and what they hold at first. Little, so that some
    #: transfers are refused.
    accounts: int = 4
    opening_amount: int = 20
    seed: int = 0
    #: Values of one tenant are above this, so that a value of another tenant's is found.
    first_value: int = 0

    @property
    def opening(self) -> dict[Account, int]:
        return {
            Account(table, number): self.opening_amount
            for table in (CURRENT, SAVINGS)
            for number in range(1, self.accounts + 1)
        }


@dataclass(slots=True)
class _Keys:
    """The keys in use, and how often each was."""

    next_key: int
    calls_max: int
    used: dict[int, int] = field(default_factory=dict)
    all: list[int] = field(default_factory=list)

    def take(self, chance: random.Random, *, counts: bool = True) -> int:
        """A key that is in use; one that was used often enough is replaced."""
        while len(self.used) < _KEYS:
            self.used[self.next_key] = 0
            self.all.append(self.next_key)
            self.next_key += 1
        key = chance.choice(sorted(self.used))
        if counts:
            self.used[key] += 1
            if self.used[key] >= self.calls_max:
                del self.used[key]
        return key


class Workload:
    """The clients of one tenant, and their history.

    `prepare`, then `run` until `stop`, then `read_everything`; `calls` is the history.
    """

    def __init__(self, executors: Sequence[Executor], tenant: str, plan: Plan) -> None:
        """Clients are spread over the executors."""
        self.tenant = tenant
        self.plan = plan
        self.calls: list[Call] = []
        self._executors = tuple(executors)
        self._stop = asyncio.Event()
        self._pace = Pace(plan.rate_per_s)
        self._value = plan.first_value
        self._lists = _Keys(plan.first_value, _LIST_CALLS_MAX)
        self._registers = _Keys(plan.first_value, _REGISTER_CALLS_MAX)
        #: The value last seen in each register, to expect it.
        self._seen: dict[int, int] = {}

    async def prepare(self) -> None:
        """Empty the tables and open the accounts. `statements.TABLES` must be applied."""
        operations = opening_statements(self.plan.accounts, self.plan.opening_amount)
        for outcome in await self._executors[0].execute_batch(self.tenant, operations, atomic=True):
            if isinstance(outcome, TenancyError):
                raise outcome

    async def run(self) -> None:
        """Work until `stop`. A call that is under way then is let end, for a while."""
        names = [f"writer {n}" for n in range(self.plan.writers)]
        names += [f"reader {n}" for n in range(self.plan.readers)]
        executors = itertools.cycle(self._executors)
        tasks = [asyncio.create_task(self._work(name, next(executors))) for name in names]
        try:
            await self._stop.wait()
            _, late = await asyncio.wait(tasks, timeout=_CLEANING_S)
            for task in late:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        self._stop.set()

    async def read_everything(self) -> None:
        """Read all that was written. It is for a client that comes when all others have ended."""
        client = Client(
            "last reader", self._executors[-1], self.tenant, self.calls, asyncio.Event()
        )
        buckets = range(self.plan.first_value // BUCKET_ITEMS, self._value // BUCKET_ITEMS + 1)
        for action in (
            *map(ReadList, self._lists.all),
            *map(ReadRegister, self._registers.all),
            *map(ReadItems, buckets),
            ReadJournal(),
            ReadBank(),
        ):
            for _ in range(_FINAL_ATTEMPTS):
                if (await client.call(action)).ok:
                    break
                await pause(asyncio.Event(), 0.02)

    async def _work(self, name: str, executor: Executor) -> None:
        chance = random.Random(f"{self.plan.seed} {self.tenant} {name}")
        client = Client(name, executor, self.tenant, self.calls, self._stop)
        writes = name.startswith("writer")
        while not self._stop.is_set():
            await self._pace.turn(self._stop)
            if self._stop.is_set():
                return
            # Writers read as well, now and then, to see whether they see what they wrote.
            if writes and chance.random() < 0.85:
                hasty = chance.random() < self.plan.hasty_share
                made = await client.call(
                    self._change(chance),
                    keyed=chance.random() < self.plan.keyed_share,
                    patience_s=chance.uniform(0, self.plan.patience_s) if hasty else None,
                )
            else:
                made = await client.call(self._read(chance))
            self._learn(made)
            await pause(self._stop, chance.uniform(0, self.plan.think_s))

    def _change(self, chance: random.Random) -> Action:
        self._value += 1
        match chance.randrange(4):
            case 0:
                return Append(self._lists.take(chance), self._value)
            case 1:
                return AddItem(self._value)
            case 2:
                tables = [CURRENT, SAVINGS]
                chance.shuffle(tables)
                source, target = (
                    Account(table, chance.randint(1, self.plan.accounts)) for table in tables
                )
                return Transfer(self._value, source, target, chance.randint(1, 9))
        key = self._registers.take(chance)
        if key in self._seen and chance.random() < 0.8:
            return Swap(key, self._seen[key], self._value)
        return Write(key, self._value)

    def _read(self, chance: random.Random) -> Action:
        match chance.randrange(4):
            case 0:
                return ReadList(self._lists.take(chance, counts=False))
            case 1:
                # Of the items near the end, and some from before.
                back = chance.choice((0, 0, 1, 5)) * BUCKET_ITEMS
                return ReadItems(max(self.plan.first_value, self._value - back) // BUCKET_ITEMS)
            case 2:
                return ReadBank()
        return ReadRegister(self._registers.take(chance))

    def _learn(self, call: Call) -> None:
        match call.action:
            case ReadRegister(key=key) if call.ok and call.answer is not None:
                self._seen[key] = call.answer
            case Write(key=key, value=value) if call.ok:
                self._seen[key] = value
            case Swap(key=key, value=value) if call.ok and call.answer:
                self._seen[key] = value
