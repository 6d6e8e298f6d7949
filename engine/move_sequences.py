"""The sequences of a move's sides: none gives out a number that the other one has given out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import quote_identifier, quote_literal
from tenancy.data_isolation.engine.move_side import MoveSide
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.together import together

_SQL = SqlFile("move.sql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a sequence has counted, and in which direction."""

    last: int
    is_called: bool
    increment: int

    def is_behind(self, other: Position) -> bool:
        """Whether it would give out a number that the other one has given out."""
        if not other.is_called:
            return False
        if not self.is_called:
            return (self.last - other.last) * _sign(self.increment) <= 0
        return (self.last - other.last) * _sign(self.increment) < 0


class MoveSequences:
    """Lets the sequences of `target` go on where those of `source` stand."""

    def __init__(self, source: MoveSide, target: MoveSide) -> None:
        self._source = source
        self._target = target
        #: By name, in which direction each one counts, and its last number.
        self._increments: dict[str, int] = {}
        self._ends: dict[str, int] = {}

    async def learn(self) -> None:
        """Learn which sequences there are on both sides, before the tenant is held."""
        ours, theirs = [
            await side.connection.fetch(_SQL.statement("sequences"), side.placement.schema)
            for side in (self._source, self._target)
        ]
        there = {row["name"] for row in theirs}
        self._increments = {row["name"]: row["increment"] for row in ours if row["name"] in there}
        self._ends = {row["name"]: row["last"] for row in theirs}

    async def check(self) -> None:
        """Raise `ConflictError` when the target's would have to go beyond the half of a sequence
        that it shares with other tenants: one tenant could use up the numbers of all of them.
        """
        names = sorted(self._increments)
        ours, theirs = await self._stand(names)
        self._check(_behind(theirs, ours), ours)

    def _check(self, behind: Iterable[str], wanted: Mapping[str, Position]) -> None:
        spent = [
            name
            for name in behind
            if self._target.is_shared and 2 * abs(wanted[name].last) > abs(self._ends[name])
        ]
        if spent:
            raise ConflictError(
                f"the tenant has used up more than half of the numbers of {', '.join(spent)}, "
                "which it would share with other tenants; make these columns bigint first"
            )

    async def advance(self) -> None:
        """Let no sequence of the target give out what the source's has; as the owner.

        Where others draw from them too, nobody does until the transaction ends: a sequence must not
        go back, so it is looked at once more.
        """
        names, target = sorted(self._increments), self._target
        ours, theirs = await self._stand(names)
        behind = _behind(theirs, ours)
        self._check(behind, ours)
        if behind and target.is_shared:
            await target.run(*map(self._closed, behind))
            now = await self._positions(target, self._places(target, behind))
            behind = _behind(dict(zip(behind, now, strict=True)), ours)
        if behind:
            steps = [
                f"pg_catalog.setval({quote_literal(_sequence(target, name))}, {ours[name].last:d})"
                for name in behind
            ]
            await target.run(f"select {', '.join(steps)}")

    async def _stand(self, names: Sequence[str]) -> list[dict[str, Position]]:
        """Where these sequences stand at the source, and at the target."""
        source, target = self._source, self._target
        ours, theirs = self._places(source, names), self._places(target, names)
        if source.connection is target.connection:
            found = await self._positions(source, ours + theirs)
            both = [found[: len(names)], found[len(names) :]]
        else:
            both = await together(self._positions(source, ours), self._positions(target, theirs))
        return [dict(zip(names, side, strict=True)) for side in both]

    async def _positions(self, side: MoveSide, places: Sequence[tuple[str, int]]) -> list[Position]:
        """Where sequences stand, which are given by their names and increments."""
        if not places:
            return []
        text = " union all ".join(
            f"select {place}::int as place, last_value, is_called from {name}"  # noqa: S608 - quoted
            for place, (name, _) in enumerate(places)
        )
        rows = sorted(await side.ask(text), key=lambda row: row["place"])
        return [
            Position(last=row["last_value"], is_called=row["is_called"], increment=increment)
            for row, (_, increment) in zip(rows, places, strict=True)
        ]

    def _places(self, side: MoveSide, names: Iterable[str]) -> list[tuple[str, int]]:
        return [(_sequence(side, name), self._increments[name]) for name in names]

    def _closed(self, name: str) -> str:
        """Changes nothing, and lets nobody else draw from it before the transaction ends."""
        increment = self._increments[name]
        return f"alter sequence {_sequence(self._target, name)} increment by {increment:d}"


def _sequence(side: MoveSide, name: str) -> str:
    return f"{quote_identifier(side.placement.schema)}.{quote_identifier(name)}"


def _behind(here: Mapping[str, Position], there: Mapping[str, Position]) -> list[str]:
    return [name for name, at in here.items() if name in there and at.is_behind(there[name])]


def _sign(number: int) -> int:
    return 1 if number > 0 else -1
