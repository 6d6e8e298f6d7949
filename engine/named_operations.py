"""Named operations: what a name and its data stand for.

A name that is registered runs its SQL. Otherwise `data["query"]` is the SQL. Otherwise the name is
`<verb>_<entity>` and acts on the table of that entity, as it is or in the other number
(`create_user` inserts into `users`). Nothing runs here: every way ends in an `Operation`, which the
guard reads like any other. Registered operations are kept in the catalog; a process reads them
again when what it has is older than `Settings.named_operation_refresh_s`, so that a change made
elsewhere is seen after that time at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    LimitError,
    OperationNotFoundError,
    ParameterError,
    StatementError,
)
from tenancy.data_isolation.core.identifiers import parse_word
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Operation
from tenancy.data_isolation.engine.catalog_records import NamedOperation
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.table_operations import (
    VERBS,
    has_operations,
    table_named,
    table_operation,
)
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

#: Names that a message lists at most.
_LISTED = 20
#: What may be wrong only because a migration has come since the tables were looked at.
_OUT_OF_DATE: Final = (OperationNotFoundError, StatementError)


class OperationStore(Protocol):
    """Where registered operations are kept; the catalog is one.

    Durability: what a method reports as done is committed. Safe from any task of one event loop,
    and from any number of processes.
    """

    async def named_operations(
        self, *, after: str | None = None, limit: int = 100
    ) -> list[NamedOperation]:
        """Operations in the order of their names, from the one behind `after`."""
        ...

    async def named_operation(self, name: str) -> NamedOperation:
        """The operation of that name, or `OperationNotFoundError`."""
        ...

    async def add_named_operation(self, operation: NamedOperation) -> bool:
        """Keep an operation of a new name; False when there is one of that name."""
        ...

    async def set_named_operation(self, operation: NamedOperation) -> None:
        """Keep an operation, in place of one of the same name."""
        ...

    async def remove_named_operation(self, name: str) -> None:
        """Forget an operation, or `OperationNotFoundError`."""
        ...


class Shapes(Protocol):
    """What the tenants' tables look like; `TableShapes` says it."""

    @property
    def newest(self) -> VisibleSchema | None:
        """The tables as they were at the last look."""
        ...

    async def look(self, *, now: bool) -> bool:
        """Look again, `now` or if the last look was long ago; whether there is something new."""
        ...


class NamedOperations:
    """Registers and resolves names. For use from one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: OperationStore,
        guard: Guard,
        shapes: Shapes,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._guard = guard
        self._shapes = shapes
        self._clock = clock or SystemClock()
        self._registered: dict[str, NamedOperation] = {}
        self._fresh_until_s: float | None = None
        self._reading = asyncio.Lock()

    async def register(self, name: str, sql: str, *, replace: bool = False) -> NamedOperation:
        """Let `name` stand for `sql`, for all tenants.

        Raises what the guard raises, `ConflictError` when the name has another text and `replace`
        is not given, and `LimitError` when there are as many as there may be.
        """
        operation = NamedOperation(name=parse_word(name, "the operation's name"), sql=sql)
        await self._shapes.look(now=True)
        self._guard.check(sql, schema=self._shapes.newest)
        known = await self._read_again()
        limit = self._settings.named_operations_max
        if name not in known and len(known) >= limit:
            raise LimitError(f"there are {limit} named operations already; remove some first")
        if replace:
            await self._store.set_named_operation(operation)
        elif not await self._store.add_named_operation(operation):
            present = await self._store.named_operation(operation.name)
            if present.sql != sql:
                raise ConflictError(
                    f"operation {name} is registered with another text; pass replace=True to "
                    "replace it"
                )
        self._fresh_until_s = None
        return operation

    async def list(self) -> list[NamedOperation]:
        """Every registered operation, in the order of their names."""
        return list((await self._read_again()).values())

    async def remove(self, name: str) -> None:
        """Forget a registered operation; `OperationNotFoundError` when there is none."""
        await self._store.remove_named_operation(parse_word(name, "the operation's name"))
        self._fresh_until_s = None

    async def resolve(self, name: str, data: Mapping[str, Any], *, anew: bool = False) -> Operation:
        """The statement that `name` stands for with `data`; `anew` looks at the tables first.

        Raises `ParameterError` when the data does not fit, `OperationNotFoundError` (listing what
        exists) when the name stands for nothing, and what the guard raises.
        """
        word = parse_word(name, "the operation's name")
        await self._shapes.look(now=anew)
        try:
            return await self._resolved(word, data)
        except _OUT_OF_DATE:
            if anew or not await self._shapes.look(now=True):
                raise
        return await self._resolved(word, data)

    async def _resolved(self, word: str, data: Mapping[str, Any]) -> Operation:
        registered = (await self._known()).get(word)
        if registered is not None:
            return self._bound(registered.sql, data, f"operation {word}")
        if "query" in data:
            return self._bound(data["query"], data, "the query")
        verb, _, entity = word.partition("_")
        schema = self._shapes.newest
        table = table_named(entity, schema) if schema and verb in VERBS else None
        if table is None:
            raise self._not_found(word, schema)
        return table_operation(verb, table, data, rows_max=self._settings.result_rows_max)

    def _bound(self, query: Any, data: Mapping[str, Any], what: str) -> Operation:
        """The query with its parameters: `data["params"]`, or the keys that it names."""
        if not isinstance(query, str):
            raise InvalidInputError(f"{what} must be SQL text, not {type(query).__name__}")
        if "params" in data:
            params = data["params"]
            return Operation(query=query, params=() if params is None else params)
        statement = self._guard.check(query, schema=self._shapes.newest)
        return Operation(query=query, params=_picked(statement, data, what))

    def _not_found(self, name: str, schema: VisibleSchema | None) -> OperationNotFoundError:
        tables = sorted(item.name for item in _tables(schema))
        return OperationNotFoundError(
            f"there is no operation {name}. Registered: {_some(self._registered)}. "
            f"{', '.join(VERBS)} followed by _ and a table: {_some(tables)}. "
            'Or give SQL as data["query"].'
        )

    async def _known(self) -> Mapping[str, NamedOperation]:
        """The registered operations, read again when they are old; one reader at a time."""
        if self._is_fresh():
            return self._registered
        async with self._reading:
            if not self._is_fresh():
                await self._read_again()
        return self._registered

    def _is_fresh(self) -> bool:
        return self._fresh_until_s is not None and self._clock.monotonic_s() < self._fresh_until_s

    async def _read_again(self) -> Mapping[str, NamedOperation]:
        """Read all of them. What was registered meanwhile is read the next time."""
        begun_s = self._clock.monotonic_s()
        found: dict[str, NamedOperation] = {}
        after: str | None = None
        while len(found) < self._settings.named_operations_max:
            page = await self._store.named_operations(after=after, limit=_PAGE)
            found |= {item.name: item for item in page}
            if len(page) < _PAGE:
                break
            after = page[-1].name
        self._registered = found
        self._fresh_until_s = begun_s + self._settings.named_operation_refresh_s
        return found


_PAGE = 100


def _picked(
    statement: Statement, data: Mapping[str, Any], what: str
) -> Mapping[str, Any] | Sequence[Any]:
    """The values of the statement's `:name` placeholders; its other keys are not for it."""
    names = statement.parameter_names
    if names is None:
        if statement.parameter_count:
            raise ParameterError(
                f'{what} has {statement.parameter_count} numbered placeholders; give data["params"]'
            )
        return ()
    missing = [name for name in names if name not in data]
    if missing:
        raise ParameterError(f"{what} needs {', '.join(missing)}, which the data does not have")
    return {name: data[name] for name in names}


def _tables(schema: VisibleSchema | None) -> Iterable[VisibleRelation]:
    return () if schema is None else filter(has_operations, schema.relations.values())


def _some(names: Iterable[str]) -> str:
    """Names for a message: so many, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return (", ".join(every[:_LISTED]) or "none") + more
