"""What would help tenants' statements to better plans, from figures that PostgreSQL counts itself.

Three kinds, each with a rule that its figures alone decide:

* `statistics`: more of a table has changed than PostgreSQL waits for, and it has not looked since.
* `memory`: sorts and hashes go to temporary files, and would fit under a limit that can be had.
* `planning`: a statement is planned again at nearly each call, and that takes longer than it runs.

Advice is about kinds of statement, by libpg_query's fingerprint, which values are no part of, and
by PostgreSQL's query id; no text of a statement is shown. Nothing is applied from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    SchemaName,
    ServerName,
    quote_identifier,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tier_limits import limit_variable
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.statement_statistics import NotedStatement
from tenancy.data_isolation.engine.syntax_tree import fingerprint, nodes, parse, type_name

#: Pieces of advice of each kind, and statements and query ids that a piece shows.
ADVICE_MAX: Final = 20
_SHOWN_MAX: Final = 5
BLOCK_BYTES: Final = 8_192
#: What a sort of narrow rows takes in memory, in times of what it writes to its files.
_MEMORY_PER_SPILL: Final = 2
#: Plans for each call from which on a statement counts as planned again each time.
_PLANS_PER_CALL_MIN: Final = 0.9


class PlanAdviceKind(StrEnum):
    """What a piece of advice is about."""

    STATISTICS = "statistics"
    MEMORY = "memory"
    PLANNING = "planning"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadStatement:
    """A noted statement whose text could be read: its fingerprint and the tables that it names."""

    noted: NotedStatement
    fingerprint: str
    tables: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownStatement:
    """A kind of statement, without its text: as this runtime and as PostgreSQL tell it apart.

    A kind has a query id for each schema that it was run in; some of them are given.
    """

    fingerprint: str
    query_ids: tuple[int, ...]
    tables: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementTotals:
    """What a piece of advice is about: kinds of statement, and what their calls have come to.

    `shown` are those kinds that took the longest; `total_s` is the time of running them, in
    seconds.
    """

    kinds: int
    shown: tuple[ShownStatement, ...]
    calls: int
    total_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TablePlace:
    """A table as it is in one schema of one database."""

    server: ServerName
    database: DatabaseName
    schema: SchemaName
    table: str

    @property
    def analyze(self) -> str:
        """The statement that brings its statistics up to date."""
        return f"analyze {quote_identifier(self.schema)}.{quote_identifier(self.table)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanAdvice:
    """What was seen, what to do, what that costs, and how it is taken back.

    `figures` are what decided. The remedy is `sql`, or a `variable` (name and value of a setting of
    the runtime), or neither. The runtime itself can carry it out where there is a `table`.
    """

    kind: PlanAdviceKind
    statements: StatementTotals
    figures: Mapping[str, float]
    remedy: str
    cost: str
    undo: str
    sql: str | None = None
    variable: tuple[str, str] | None = None
    table: TablePlace | None = None


def read_statements(noted: Iterable[NotedStatement], tables: Iterable[str]) -> list[ReadStatement]:
    """Those whose texts can be read, with what they name of `tables`."""
    known = frozenset(tables)
    found = []
    for item in noted:
        try:
            every = list(nodes(parse(item.text)))
            same = fingerprint(item.text)
        except TenancyError:
            continue  # PostgreSQL cuts long texts off.
        named = {node.relname for node in every if type_name(node) == "RangeVar"}
        # The name of a WITH query can be that of a table.
        named -= {node.ctename for node in every if type_name(node) == "CommonTableExpr"}
        found.append(ReadStatement(noted=item, fingerprint=same, tables=known & named))
    return found


def advised_analyze(
    place: TablePlace, figures: Mapping[str, float], statements: Sequence[ReadStatement]
) -> PlanAdvice:
    """That the statistics of a table are brought up to date."""
    return PlanAdvice(
        kind=PlanAdviceKind.STATISTICS,
        statements=_totals(statements),
        figures=figures,
        remedy=(
            "have PostgreSQL look at the table again: its plans rest on what the table was like "
            "before, and no autovacuum has come since"
        ),
        cost=(
            "reads a sample of 30,000 rows by default; reading and writing go on meanwhile, other "
            "maintenance of the table waits"
        ),
        undo="nothing to take back: it is what autovacuum does by itself, later",
        sql=place.analyze,
        table=place,
    )


def advised_memory(
    read: Iterable[ReadStatement],
    types: Mapping[tuple[ServerName, RoleName], frozenset[TenantType]],
    settings: Settings,
) -> list[PlanAdvice]:
    """Limits of types of tenant that sorts and hashes would fit under.

    `types` are those of the tenants that a login works for. Where several share one, a statement
    that spills may be of any of them whose limit is lower than what it needs.
    """
    found: dict[TenantType, list[tuple[int, ReadStatement]]] = {}
    for item in read:
        need = _memory_need(item.noted)
        if not 0 < need <= settings.advice_memory_bytes_max:
            continue
        for kind in types.get((item.noted.server, item.noted.role), frozenset()):
            if settings.tier_limits.of(kind).statement_memory_bytes < need:
                found.setdefault(kind, []).append((need, item))
    advice = [_memory(kind, items, settings) for kind, items in found.items()]
    return sorted(advice, key=lambda item: -item.statements.total_s)[:ADVICE_MAX]


def advised_planning(read: Iterable[ReadStatement], settings: Settings) -> list[PlanAdvice]:
    """Statements that are planned again and again for longer than they run."""
    found: dict[str, list[ReadStatement]] = {}
    for item in read:
        noted = item.noted
        if (
            noted.plans >= settings.advice_plans_min
            and noted.plans >= _PLANS_PER_CALL_MIN * noted.calls
            and noted.plan_s > noted.total_s
        ):
            found.setdefault(item.fingerprint, []).append(item)
    advice = [_planning(items) for items in found.values()]
    return sorted(advice, key=lambda item: -item.figures["planning_s"])[:ADVICE_MAX]


def _memory_need(noted: NotedStatement) -> int:
    """Bytes of work_mem, a power of two, that a call would have needed; 0 = it wrote no files.

    Not from what it had: figures of the time before a limit was raised would raise it again.
    """
    spilled = noted.temp_blocks * BLOCK_BYTES // noted.calls
    return 1 << (spilled * _MEMORY_PER_SPILL - 1).bit_length() if spilled else 0


def _memory(
    kind: TenantType, items: Sequence[tuple[int, ReadStatement]], settings: Settings
) -> PlanAdvice:
    need = max(need for need, _ in items)
    limits = settings.tier_limits.of(kind)
    read = [item for _, item in items]
    calls = sum(item.noted.calls for item in read)
    spilled = sum(item.noted.temp_blocks for item in read) * BLOCK_BYTES
    more = (need - limits.statement_memory_bytes) * limits.connections_max
    name = limit_variable(kind, "statement_memory_bytes")
    return PlanAdvice(
        kind=PlanAdviceKind.MEMORY,
        statements=_totals(read),
        figures={
            "temp_bytes_per_call": spilled / calls,
            "memory_bytes_now": limits.statement_memory_bytes,
            "memory_bytes_needed": need,
        },
        remedy=f"set {name}={need} and start the runtime again: sorts and hashes stay in memory",
        cost=(
            f"up to {more:,} bytes more for each tenant of type {kind} whose "
            f"{limits.connections_max} sessions all sort at once, for each sort of a statement"
        ),
        undo=f"set {name}={limits.statement_memory_bytes} and start the runtime again",
        variable=(name, str(need)),
    )


def _planning(items: Sequence[ReadStatement]) -> PlanAdvice:
    plans = sum(item.noted.plans for item in items)
    calls = sum(item.noted.calls for item in items)
    return PlanAdvice(
        kind=PlanAdviceKind.PLANNING,
        statements=_totals(items),
        figures={
            "plans": plans,
            "plans_per_call": plans / calls,
            "planning_s": sum(item.noted.plan_s for item in items),
            "execution_s": sum(item.noted.total_s for item in items),
        },
        remedy=(
            "have the application send values as parameters, not within the text: a text with "
            "other values is another one, which is read and planned anew. If it does, PostgreSQL "
            "finds plans for the values at hand cheaper, or sessions are emptied in between"
        ),
        cost="a change of the application; plans are then made for any value, not for one",
        undo="the application sends texts as before",
    )


def _totals(items: Sequence[ReadStatement]) -> StatementTotals:
    """What all kinds of advice say of the statements that they are about."""
    kinds: dict[str, list[ReadStatement]] = {}
    for item in sorted(items, key=lambda item: -(item.noted.total_s + item.noted.plan_s)):
        kinds.setdefault(item.fingerprint, []).append(item)
    shown = tuple(
        ShownStatement(
            fingerprint=name,
            query_ids=tuple(dict.fromkeys(one.noted.query_id for one in of))[:_SHOWN_MAX],
            tables=tuple(sorted(frozenset().union(*(one.tables for one in of)))),
        )
        for name, of in list(kinds.items())[:_SHOWN_MAX]
    )
    return StatementTotals(
        kinds=len(kinds),
        shown=shown,
        calls=sum(item.noted.calls for item in items),
        total_s=sum(item.noted.total_s for item in items),
    )
