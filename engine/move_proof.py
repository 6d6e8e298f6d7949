"""The proof that both sides of a move hold the same: counts, hashes, sequences, definitions.

Rows that change while they are compared are left out: their keys are noted at the side at which the
tenant works, in the snapshot that is compared, and will be carried and compared in their turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tenancy.data_isolation.core.identifiers import SchemaName, TenantNo, quote_identifier
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.move_copy import MoveCopier
from tenancy.data_isolation.engine.move_side import MoveSide
from tenancy.data_isolation.engine.schema_differences import differences
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import read_snapshot, set_path
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("move.sql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """What a set of rows comes to: how many, and sum and exclusive or of their 64-bit hashes."""

    rows: int
    sum: str
    xor: int

    def __str__(self) -> str:
        return f"{self.rows}:{self.sum}:{self.xor & 0xFFFF_FFFF_FFFF_FFFF:016x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableProof:
    """What was compared of one table."""

    table: str
    source: Digest
    target: Digest
    #: Rows that were left out because they changed meanwhile.
    left_out: int

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return self.source == self.target

    def document(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            "table": self.table,
            "rows": self.source.rows,
            "source": str(self.source),
            "target": str(self.target),
            "left_out": self.left_out,
            "equal": self.is_equal,
        }


class MoveProof:
    """Compares the sides of a move. `copier` says which one follows the other."""

    def __init__(self, copier: MoveCopier, *, move_id: MoveId, tenant_no: TenantNo) -> None:
        self._copier = copier
        self._move_id = move_id
        self._tenant_no = tenant_no

    async def compare_all(self) -> list[TableProof]:
        """Compare every row of every table, but for those whose keys are noted at the source."""
        async with self._copier.carrying() as changed:
            await self._copier.stage_keys(changed)
            return await self._compare(changed, only=False)

    async def compare_changed(self, changed: Mapping[str, list[int]]) -> list[TableProof]:
        """Compare the rows that were carried just now, within the transaction that did it."""
        return await self._compare(changed, only=True)

    async def _compare(self, changed: Mapping[str, list[int]], *, only: bool) -> list[TableProof]:
        source, target = self._copier.source, self._copier.target
        found = []
        for here, there in self._copier.pairs():
            if only and here.name not in changed:
                continue
            ours = here.digest(
                source.placement.schema, self._tenant_no, notes=self._move_id, only=only
            )
            theirs = there.digest(target.placement.schema, self._tenant_no, notes=None, only=only)
            found.append(
                TableProof(
                    table=here.name,
                    source=await _digest(source, ours),
                    target=await _digest(target, theirs),
                    left_out=0 if only else len(changed.get(here.name, ())),
                )
            )
        return found


async def definition_differences(source: MoveSide, target: MoveSide) -> list[str]:
    """In what the definitions of both sides differ, by name; rights and names of schemas apart.

    Two major versions write the same expression in other words, so between them it is compared what
    there is and of which type, and the texts are vouched for by the migrations, which are the same.
    """
    ours, theirs = await _snapshot(source), await _snapshot(target)
    sides = [_without_schema(ours), _without_schema(theirs)]
    majors = {side.connection.get_server_version().major for side in (source, target)}
    if len(majors) > 1:
        sides = [_without_texts(side) for side in sides]
    return differences(*sides)


async def unready_indexes(side: MoveSide) -> list[str]:
    """Indexes that are not valid, and constraints that were not checked."""
    snapshot = await _snapshot(side)
    found = [index.name for index in snapshot.indexes if not index.valid]
    return found + [item.name for item in snapshot.constraints if not item.validated]


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


async def positions(side: MoveSide) -> dict[str, Position]:
    """Where the sequences of a side stand; as the owner."""
    rows = await side.connection.fetch(_SQL.statement("sequences"), side.placement.schema)
    if not rows:
        return {}
    text = " union all ".join(
        f"select {place}::int as place, last_value, is_called "  # noqa: S608 - quoted names
        f"from {_sequence(side.placement.schema, row['name'])}"
        for place, row in enumerate(rows)
    )
    found = {}
    for item in await side.connection.fetch(text):
        row = rows[item["place"]]
        found[row["name"]] = Position(
            last=item["last_value"], is_called=item["is_called"], increment=row["increment"]
        )
    return found


async def advance_sequences(side: MoveSide, wanted: Mapping[str, Position]) -> None:
    """Let no sequence of a side give out what the other side's has.

    Where others draw from them too, nobody does until the transaction ends: a sequence must not go
    back, so it is looked at once more.
    """
    behind = _behind(await positions(side), wanted)
    if behind and side.is_shared:
        for name in behind:
            increment = wanted[name].increment
            await side.connection.execute(
                f"alter sequence {_sequence(side.placement.schema, name)} "
                f"increment by {increment:d}"
            )
        behind = _behind(await positions(side), wanted)
    for name in behind:
        await side.connection.execute(
            _SQL.statement("set_sequence"),
            _sequence(side.placement.schema, name),
            wanted[name].last,
        )


def _behind(here: Mapping[str, Position], there: Mapping[str, Position]) -> list[str]:
    return [name for name, at in here.items() if name in there and at.is_behind(there[name])]


async def _digest(side: MoveSide, text: str) -> Digest:
    await set_path(side.connection, side.placement.schema)
    (row,) = await side.connection.fetch(text)
    return Digest(rows=row["rows"], sum=row["sum"], xor=row["xor"])


async def _snapshot(side: MoveSide) -> SchemaSnapshot:
    async with side.transaction() as connection:
        await side.enter()
        return await read_snapshot(connection, side.placement.schema)


def _without_schema(snapshot: SchemaSnapshot) -> SchemaSnapshot:
    # PostgreSQL has NOT NULL as a constraint since version 18; the columns say it in all versions.
    constraints = tuple(item for item in snapshot.constraints if item.type != "n")
    return replace(snapshot, constraints=constraints, grants=(), outside=(), strangers=())


def _without_texts(snapshot: SchemaSnapshot) -> SchemaSnapshot:
    """Without what a major version writes in words of its own."""
    return replace(
        snapshot,
        relations=tuple(
            replace(
                item,
                definition=item.definition if item.kind == "S" else None,
                columns=tuple(
                    replace(column, default=None if column.default is None else "some")
                    for column in item.columns
                ),
            )
            for item in snapshot.relations
        ),
        constraints=tuple(
            replace(item, definition="") if item.type == "c" else item
            for item in snapshot.constraints
        ),
        indexes=tuple(replace(item, tail=None) for item in snapshot.indexes),
        policies=tuple(replace(item, using=None, check=None) for item in snapshot.policies),
        triggers=tuple(replace(item, definition="") for item in snapshot.triggers),
        routines=tuple(replace(item, definition="") for item in snapshot.routines),
        types=tuple(replace(item, definition="") for item in snapshot.types),
    )


def _sequence(schema: SchemaName, name: str) -> str:
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


def _sign(number: int) -> int:
    return 1 if number > 0 else -1
