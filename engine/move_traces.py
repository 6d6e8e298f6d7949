"""What moves of tenants leave in databases and in the catalog, and what of it should not be there.

What belongs to a move of which something is left to do is as it should be, if it is what a move
makes: a trigger that works with its owner's rights on tables of tenants is believed by its text
alone, never by its name. Traces are read before the catalog: what is seen of a move that the
catalog does not know then is of no move that will ever be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.identifiers import SchemaName, ServerName
from tenancy.data_isolation.core.move import MoveId, MoveState, MoveWish
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.findings import Finding, Severity, by_owner
from tenancy.data_isolation.engine.move_side import table_of
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("leftovers.sql")
_MOVE_SQL = SqlFile("move.sql")
CHECK: Final = "moves"
#: A tenant that is closed in the middle of a move that nobody carries out; carried on, not by SQL.
STRANDED: Final = "stranded_moves"
#: A trigger that says it belongs to a move, and is not what a move makes.
FORGED: Final = "move_triggers"
#: What the text of a function of a move is quoted with.
_QUOTE: Final = "$tenancy$"
#: States in which a tenant can be closed, or in which one that was cut off can have left it so.
_CAN_BE_CLOSED: Final = frozenset({MoveState.CUTTING_OVER, MoveState.OPEN})

#: A row of a query, or a placement as a move records it.
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveTrigger:
    """A trigger that says it notes changes for a move; `sound` when it is what a move makes."""

    move_id: MoveId
    schema: str
    table: str
    name: str
    tenant_no: int | None
    sound: bool
    #: Whether there is something to note changes in. Without it, writes of the tenant fail.
    has_notes: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveTraces:
    """What there is of moves in one database."""

    server: str
    database: str
    schemas: Sequence[str]
    triggers: Sequence[MoveTrigger]

    @property
    def move_ids(self) -> set[str]:
        """The moves that they say they are of."""
        return {*self.schemas, *(trigger.move_id for trigger in self.triggers)}


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownMove:
    """A move as the catalog has it, with the place of its tenant now. Ages in seconds."""

    move_id: MoveId
    tenant_no: int
    tenant_id: str
    state: MoveState
    settled: bool
    error: str | None
    wish: MoveWish | None
    #: Source and target.
    sides: tuple[Row, Row]
    server: str
    database: str
    epoch: int
    age_s: float
    open_s: float | None
    #: Whether somebody carries it out now.
    owned: bool

    def is_at(self, server: str, database: str) -> bool:
        """Whether a database is one of its sides."""
        return any((side["server"], side["database"]) == (server, database) for side in self.sides)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownMoves:
    """The moves that the catalog has and that count for a look.

    `at_work` are those of which something is left to do, and those that changed during the look,
    when what was seen earlier may be as it was before.
    """

    moves: Sequence[KnownMove] = ()
    #: Whoever changed within so many seconds may still be at it.
    patience_s: float = 0.0

    @property
    def at_work(self) -> Sequence[KnownMove]:
        """Moves whose traces are no leftovers."""
        return [move for move in self.moves if not move.settled or self.is_fresh(move)]

    def is_fresh(self, move: KnownMove) -> bool:
        """Whether it changed a moment ago."""
        return move.age_s <= self.patience_s

    def sides(self, server: str) -> list[Row]:
        """The sides on a server of those that are at work."""
        return [side for move in self.at_work for side in move.sides if side["server"] == server]

    def names(self, server: str) -> frozenset[str]:
        """What may come and go on a server: the moves' own schemas, and what makes up the sides."""
        return frozenset(
            [str(move.move_id) for move in self.at_work]
            + [side[part] for side in self.sides(server) for part in ("role", "schema", "database")]
        )

    def unsure(self) -> frozenset[int]:
        """Tenants whose fences may be anything for a moment."""
        return frozenset(
            move.tenant_no
            for move in self.at_work
            if self.is_fresh(move) or move.state in _CAN_BE_CLOSED or move.state.is_final
        )


async def read_traces(
    connection: asyncpg.Connection, *, server: ServerName, database: str
) -> MoveTraces:
    """What there is of moves in the database that `connection`, the admin's, is in."""
    schemas = await connection.fetch(_SQL.statement("move_schemas"))
    triggers: list[MoveTrigger] = []
    # In the order of the schemas.
    rows = await connection.fetch(_SQL.statement("move_triggers"))
    for schema, of_schema in groupby(rows, key=lambda row: str(row["schema"])):
        bodies = _Bodies(await connection.fetch(_MOVE_SQL.statement("tables"), schema))
        triggers += [
            MoveTrigger(
                move_id=MoveId(row["move_id"]),
                schema=schema,
                table=row["table"],
                name=row["name"],
                tenant_no=row["tenant_no"],
                sound=row["sound"] and row["body"] == bodies.due(row),
                has_notes=row["has_notes"],
            )
            for row in of_schema
        ]
    return MoveTraces(
        server=server,
        database=database,
        schemas=[row["name"] for row in schemas],
        triggers=triggers,
    )


async def read_moves(
    control: asyncpg.Connection, traces: Iterable[MoveTraces], *, patience_s: float
) -> KnownMoves:
    """What the catalog, whose tables the caller knows to be plain ones, says of moves."""
    if not await control.fetchval(_SQL.statement("has_moves")):
        return KnownMoves(patience_s=patience_s)
    seen = sorted({name for trace in traces for name in trace.move_ids})
    rows = await control.fetch(_SQL.statement("moves"), seen, patience_s)
    return KnownMoves(moves=[_known(row) for row in rows], patience_s=patience_s)


def trace_findings(
    traces: Iterable[MoveTraces], known: KnownMoves, settings: Settings
) -> Iterator[Finding]:
    """Traces of moves that are over or were never, and triggers that only look like a move's."""
    by_id = {str(move.move_id): move for move in known.moves}
    at_work = {str(move.move_id): move for move in known.at_work}
    for trace in traces:
        noted: set[str] = set()
        for key, group in groupby(trace.triggers, key=lambda it: (it.schema, it.table, it.move_id)):
            triggers = list(group)
            move_id = str(key[2])
            noted.add(move_id)
            if not all(trigger.sound for trigger in triggers):
                yield _forged(trace, triggers, settings)
            elif not _is_of(at_work.get(move_id), trace, triggers[0]):
                yield _left_triggers(trace, triggers, by_id.get(move_id), settings)
        for name in trace.schemas:
            move = at_work.get(name)
            # Its triggers go first, table by table: a schema that takes them along locks them all.
            if name not in noted and (move is None or not move.is_at(trace.server, trace.database)):
                yield _left_schema(trace, name, by_id.get(name), settings)


def move_findings(
    known: KnownMoves,
    fences: Mapping[tuple[str, str], Iterable[Row]],
    settings: Settings,
) -> Iterator[Finding]:
    """Moves that stand where they should not, of tenants whose place is in one of `fences`.

    Fences by server and database. What changed a moment ago, or has an owner, is no finding.
    """
    wait_s = known.patience_s + settings.move_owner_timeout_s
    for move in known.moves:
        rows = fences.get((move.server, move.database))
        if move.settled or move.age_s <= wait_s or rows is None:
            continue
        if not move.owned and (move.state in _CAN_BE_CLOSED or move.state.is_final):
            mine = {row["tenant_no"]: row for row in rows}.get(move.tenant_no)
            if mine is None or not mine["open"] or mine["epoch"] != move.epoch:
                yield _stranded(move)
                continue
        if move.state.is_final and not move.owned:
            yield _unclean(move)
        elif move.state is MoveState.OPEN and (move.open_s or 0) > (
            settings.move_retention_s + wait_s
        ):
            yield _overdue(move, settings)
        elif move.state is MoveState.OPEN and move.wish is not None and move.error:
            yield _hindered(move, move.wish)


class _Bodies:
    """The texts that functions of moves have, for the tables of one schema."""

    def __init__(self, rows: Iterable[asyncpg.Record]) -> None:
        self._rows = {row["name"]: row for row in rows}

    def due(self, trigger: asyncpg.Record) -> str | None:
        """The body of the function of a trigger; None where a move makes none."""
        row, label = self._rows.get(trigger["table"]), trigger["label"]
        if row is None or label is None or row["key"] is None:
            return None
        return table_of(label, row).make_noting(MoveId(trigger["move_id"])).split(_QUOTE)[1]


def _known(row: asyncpg.Record) -> KnownMove:
    return KnownMove(
        move_id=MoveId(row["move_id"]),
        tenant_no=row["tenant_no"],
        tenant_id=row["tenant_id"],
        state=MoveState(row["state"]),
        settled=row["settled"],
        error=row["error"],
        wish=None if row["wish"] is None else MoveWish(row["wish"]),
        sides=(json.loads(row["source"]), json.loads(row["target"])),
        server=row["server"],
        database=row["database"],
        epoch=row["epoch"],
        age_s=row["age_s"],
        open_s=row["open_s"],
        owned=row["owned"],
    )


def _is_of(move: KnownMove | None, trace: MoveTraces, trigger: MoveTrigger) -> bool:
    """Whether a sound trigger is where a move that is at work needs it."""
    return (
        move is not None
        and trigger.has_notes
        and trigger.tenant_no == move.tenant_no
        and any(
            (side["server"], side["database"], side["schema"])
            == (trace.server, trace.database, trigger.schema)
            for side in move.sides
        )
    )


# The findings


def _whose(move: KnownMove | None) -> str:
    if move is None:
        return "a move that the catalog does not know"
    return f"a move that is {move.state}" if move.settled else "a move that has no use for it"


def _dropped(triggers: Sequence[MoveTrigger], settings: Settings) -> tuple[str, ...]:
    texts = [
        _SQL.statement(
            "drop_trigger", trigger=trigger.name, schema=trigger.schema, table=trigger.table
        ).rstrip(";")
        for trigger in triggers
    ]
    return (_briefly(settings), *by_owner(texts))


def _briefly(settings: Settings) -> str:
    text: str = _SQL.statement("wait_briefly")
    return text.rstrip(";").splitlines()[-1].replace("$1", str(settings.move_lock_timeout_ms))


def _table_name(trigger: MoveTrigger) -> str:
    return f"{SchemaName(trigger.schema)}.{trigger.table}"


def _forged(trace: MoveTraces, triggers: Sequence[MoveTrigger], settings: Settings) -> Finding:
    names = ", ".join(trigger.name for trigger in triggers if not trigger.sound)
    return Finding(
        check=FORGED,
        severity=Severity.UNSAFE,
        server=trace.server,
        database=trace.database,
        subject=f"trigger {names} of {_table_name(triggers[0])}",
        problem="is called as a move's, and is not what a move makes",
        statements=_dropped(triggers, settings),
    )


def _left_triggers(
    trace: MoveTraces, triggers: Sequence[MoveTrigger], move: KnownMove | None, settings: Settings
) -> Finding:
    first = triggers[0]
    effect = (
        f"what tenant number {first.tenant_no} changes is noted, and nobody takes the notes away"
        if first.has_notes
        else f"writes of tenant number {first.tenant_no} fail"
    )
    return Finding(
        check=CHECK,
        severity=Severity.WARNING if first.has_notes else Severity.BROKEN,
        server=trace.server,
        database=trace.database,
        subject=f"triggers of move {first.move_id} on {_table_name(first)}",
        problem=f"are left of {_whose(move)}: {effect}",
        statements=_dropped(triggers, settings),
    )


def _left_schema(
    trace: MoveTraces, name: str, move: KnownMove | None, settings: Settings
) -> Finding:
    text = _SQL.statement("drop_move_schema", schema=name).rstrip(";")
    return Finding(
        check=CHECK,
        severity=Severity.WARNING,
        server=trace.server,
        database=trace.database,
        subject=f"schema {name}",
        problem=f"is left of {_whose(move)}",
        statements=(_briefly(settings), text),
    )


def _stranded(move: KnownMove) -> Finding:
    return Finding(
        check=STRANDED,
        severity=Severity.BROKEN,
        server=move.server,
        database=move.database,
        subject=f"move {move.move_id}",
        problem=f"has left tenant {move.tenant_id} closed ({move.state}), and nobody works at it",
        advice="`tenancy up`, whose mover takes it up; or `tenancy doctor --mend`",
    )


def _lost_server(move: KnownMove) -> str:
    return f"when a server of it is lost for good: tenancy move abandon {move.move_id}"


def _unclean(move: KnownMove) -> Finding:
    return Finding(
        check=CHECK,
        severity=Severity.WARNING,
        server=move.server,
        database=move.database,
        subject=f"move {move.move_id}",
        problem=f"of tenant {move.tenant_id} is {move.state}, and what it made is still there"
        + (f": {move.error}" if move.error else ""),
        advice="`tenancy up`, whose mover tries again; if it has, see to what stands in the way; "
        + _lost_server(move),
        by_hand=True,
    )


def _hindered(move: KnownMove, wish: MoveWish) -> Finding:
    return Finding(
        check=CHECK,
        severity=Severity.WARNING,
        server=move.server,
        database=move.database,
        subject=f"move {move.move_id}",
        problem=f"of tenant {move.tenant_id} is open, and cannot be granted the {wish} that was "
        f"asked for: {move.error}",
        advice=f"see to what stands in the way; {_lost_server(move)}",
        by_hand=True,
    )


def _overdue(move: KnownMove, settings: Settings) -> Finding:
    return Finding(
        check=CHECK,
        severity=Severity.WARNING,
        server=move.server,
        database=move.database,
        subject=f"move {move.move_id}",
        problem=f"of tenant {move.tenant_id} has been open for {(move.open_s or 0) / 60:.0f} "
        f"minutes, longer than it is kept ({settings.move_retention_s:.0f} s, "
        "TENANCY_MOVE_RETENTION_S)" + (f": {move.error}" if move.error else ""),
        advice="`tenancy up`, whose mover confirms it; or first "
        f"tenancy move rollback {move.move_id}; {_lost_server(move)}",
        by_hand=True,
    )
