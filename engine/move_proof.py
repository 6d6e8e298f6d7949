"""The proof that both sides of a move hold the same: counts, hashes, definitions.

Rows that change while they are compared are left out: their keys are noted at the side at which the
tenant works, in the snapshot that is compared, and will be carried and compared in their turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.move_copy import MoveCopier
from tenancy.data_isolation.engine.move_side import MoveSide, Notes
from tenancy.data_isolation.engine.move_table import MoveTable
from tenancy.data_isolation.engine.schema_differences import differences
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import read_snapshot
from tenancy.data_isolation.engine.together import together


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
            proofs = []
            for pair in self._copier.pairs():
                left_out = changed[pair[0].name].count if pair[0].name in changed else 0
                proofs += await self._compare([pair], only=False, left_out=left_out)
            return proofs

    async def compare_changed(self, changed: Mapping[str, Notes]) -> list[TableProof]:
        """Compare the rows that were carried just now, within the transaction that did it."""
        pairs = [pair for pair in self._copier.pairs() if pair[0].name in changed]
        return await self._compare(pairs, only=True)

    async def _compare(
        self, pairs: Sequence[tuple[MoveTable, MoveTable]], *, only: bool, left_out: int = 0
    ) -> list[TableProof]:
        """Compare tables, in one round trip to each database."""
        if not pairs:
            return []
        source, target = self._copier.source, self._copier.target
        theirs = [
            there.digest(target.placement.schema, self._tenant_no, notes=None, only=only)
            for _, there in pairs
        ]
        ours = [
            here.digest(source.placement.schema, self._tenant_no, notes=self._move_id, only=only)
            for here, _ in pairs
        ]
        if self._copier.is_one_database:
            found = await _digests(source, ours + theirs)
            sides = [found[: len(pairs)], found[len(pairs) :]]
        else:
            sides = await together(_digests(source, ours), _digests(target, theirs))
        return [
            TableProof(table=here.name, source=one, target=other, left_out=left_out)
            for (here, _), one, other in zip(pairs, *sides, strict=True)
        ]


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


async def _digests(side: MoveSide, texts: Sequence[str]) -> list[Digest]:
    text = " union all ".join(
        f"select {place} as place, d.* from ({text}) d"  # noqa: S608 - texts of ours
        for place, text in enumerate(texts)
    )
    rows = sorted(await side.ask(text), key=lambda row: row["place"])
    return [Digest(rows=row["rows"], sum=row["sum"], xor=row["xor"]) for row in rows]


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
