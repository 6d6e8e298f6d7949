"""A table as a move sees it, and the SQL that carries its rows. Pure.

Rows travel through a *stage*, a temporary table beside the target's, whatever lies between: the
source fills it by a query, and the target takes from it. Three kinds of rows are in a stage:
`CHANGED` ones as they are at the source now, `GONE` keys that the source no longer has, and
`CHUNK`, the next ones of the first copy.

A type of the schema's own (an enum, a domain) has another number in another schema and database, so
its values travel as text.

The queries run in a users' schema, so their functions and operators are pinned to PostgreSQL's.
"""

# ruff: noqa: S608 - all that is put into a text is a quoted name, a type or a literal of ours.

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.identifiers import (
    SchemaName,
    TenantNo,
    quote_identifier,
    quote_literal,
)
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.pinning import pinned
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN

GONE: Final = 0
CHANGED: Final = 1
CHUNK: Final = 2
#: The column of a stage that says which kind of row it is. Users' columns cannot be called so.
_KIND: Final = "tenancy_kind"

#: Types whose hash says exactly whether two values are the same. Not numeric, float8, interval and
#: jsonb: 1.0 and 1.00, 0 and -0, '1 day' and '24:00' are equal there and are not the same.
_HASHED_AS_THEY_ARE: Final = frozenset(
    {
        "boolean",
        "smallint",
        "integer",
        "bigint",
        "uuid",
        "bytea",
        "date",
        "timestamp without time zone",
        "timestamp with time zone",
    }
)
#: Types whose comparisons are LEAKPROOF in all versions: not numeric, jsonb, enums and ranges.
_LEAKPROOF: Final = frozenset(
    {
        *("boolean", "smallint", "integer", "bigint", "real", "double precision", "oid"),
        *("text", "character varying", "character", "bytea", "uuid", "bit", "bit varying"),
        *("date", "interval", "inet", "macaddr"),
        *("time without time zone", "time with time zone"),
        *("timestamp without time zone", "timestamp with time zone"),
    }
)
#: What a type's length or precision is written as.
_MODIFIER: Final = re.compile(r"\([0-9,]*\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveColumn:
    """A column that can be written. `own_type` says that its type belongs to the schema."""

    name: str
    type: str
    own_type: bool = False
    #: What its type is a domain of, if it is one.
    base_type: str | None = None

    @property
    def stage_type(self) -> str:
        """Its type in a stage."""
        return "text" if self.own_type else self.type

    def carried(self, alias: str) -> str:
        """Its value as it travels.

        Of a type of the schema's own by what the type itself writes: a cast to text could have been
        made by users, and where the keys are noted that would work as the keeper.
        """
        value = self.of(alias)
        if not self.own_type:
            return value
        return f"case when {value} is null then null else pg_catalog.concat({value}) end"

    def taken(self, alias: str) -> str:
        """Its value as the target's column wants it, from the stage."""
        return f"{self.of(alias)}::{self.type}" if self.own_type else self.of(alias)

    def compared(self, alias: str) -> str:
        """Its value as a key of the table compares with it, from the stage or the notes.

        Not as a domain: what that checks may call functions of users, and this session is the
        admin's.
        """
        return f"{self.of(alias)}::{self.key_type}" if self.own_type else self.of(alias)

    @property
    def key_type(self) -> str:
        """The type in which keys are compared."""
        return self.base_type or self.type

    @property
    def is_looked_up(self) -> bool:
        """Whether an index finds a row by it although there is row security: whether its operators
        are LEAKPROOF (manual, 5.9 and 39.5).
        """
        return _MODIFIER.sub("", self.key_type) in _LEAKPROOF

    def of(self, alias: str) -> str:
        """The column of a table that is called `alias`."""
        return f"{alias}.{self.quoted}"

    def hashed(self, alias: str) -> str:
        """A value that is the same at two places exactly when the column is."""
        if self.type in _HASHED_AS_THEY_ARE:
            return self.of(alias)
        value = self.carried(alias) if self.own_type else f"{self.of(alias)}::pg_catalog.text"
        return f'({value} collate "C")'

    @property
    def quoted(self) -> str:
        """Its name, quoted."""
        return quote_identifier(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveTable:
    """A table with tenants' rows. `key` is its primary key without the tenant's column."""

    #: What names that which belongs to it: its side, and its place among the tables there.
    label: str
    name: str
    columns: tuple[MoveColumn, ...]
    key: tuple[MoveColumn, ...]
    deferrable_key: bool = False

    # Names

    @property
    def stage(self) -> str:
        """The temporary table through which its rows come."""
        return f"pg_temp.tenancy_stage_{self.label}"

    def notes(self, move: MoveId) -> str:
        """The table of the move's schema that notes which keys have changed."""
        return f"{quote_identifier(move)}.changed_{self.label}"

    def at(self, schema: SchemaName) -> str:
        """Its qualified name in a schema."""
        return f"{quote_identifier(schema)}.{quote_identifier(self.name)}"

    # What the source notes

    def make_notes(self, move: MoveId) -> str:
        """Makes the table of changed keys."""
        columns = "".join(f", {column.quoted} {column.stage_type}" for column in self.key)
        return (
            f"create table if not exists {self.notes(move)} "
            f"(tenancy_seq bigint generated always as identity primary key{columns}); "
            f"grant select on {self.notes(move)} to tenancy_owner"
        )

    def make_noting(self, move: MoveId) -> str:
        """Makes the function that notes the key of a changed row, and both when a key changes.

        It works with its owner's rights, because the tenant has none on the notes. Every name is
        qualified, so that no search_path can mislead it.
        """
        names = ", ".join(column.quoted for column in self.key)
        old, new = (", ".join(c.carried(alias) for c in self.key) for alias in ("old", "new"))
        before, after = (", ".join(c.of(alias) for c in self.key) for alias in ("old", "new"))
        note = f"insert into {self.notes(move)} ({names}) values"
        # As records: two row constructors would be compared column by column.
        record = "pg_catalog.record"
        differs = f"row({before})::{record} operator(pg_catalog.*<>) row({after})::{record}"
        return (
            f"create or replace function {self._noting(move)}() returns trigger "
            "language plpgsql security definer as $tenancy$ begin "
            "if tg_op operator(pg_catalog.=) 'INSERT' then "
            f"{note} ({new}); "
            "elsif tg_op operator(pg_catalog.=) 'DELETE' then "
            f"{note} ({old}); "
            f"elsif {differs} then {note} ({old}), ({new}); "
            f"else {note} ({new}); end if; "
            "return null; end $tenancy$; "
            f"revoke all on function {self._noting(move)}() from public; "
            f"grant execute on function {self._noting(move)}() to tenancy_owner"
        )

    def make_triggers(
        self, move: MoveId, schema: SchemaName, tenant_no: TenantNo
    ) -> Iterator[tuple[str, str]]:
        """Names and texts of the triggers that note what the tenant changes."""
        for event, alias in (("insert", "new"), ("update", "old"), ("delete", "old")):
            name = f"tenancy_{move}_{event}"
            yield (
                name,
                f"create trigger {name} after {event} on {self.at(schema)} for each row "
                f"when ({alias}.{TENANT_COLUMN} operator(pg_catalog.=) {tenant_no:d}) "
                f"execute function {self._noting(move)}()",
            )

    def _noting(self, move: MoveId) -> str:
        return f"{quote_identifier(move)}.note_{self.label}"

    # What the stage takes

    def make_stage(self) -> str:
        """Makes the stage, the admin's. The owner, as whom users' code runs, can fill and empty it,
        and hang nothing on it that would run when the admin does.
        """
        columns = "".join(f", {column.quoted} {column.stage_type}" for column in self.columns)
        return (
            f"drop table if exists {self.stage}; "
            f"create temporary table {self.stage} ({_KIND} smallint{columns}); "
            f"grant select, insert, truncate on {self.stage} to tenancy_owner"
        )

    def put_in_stage(self, query: str) -> str:
        """Puts what a query finds into the stage; one row, that says how many there were."""
        names = ", ".join(map(quote_identifier, self.stage_columns))
        return (
            f"with put as (insert into {self.stage} ({names}) {query} returning 1), "
            "answer as (select count(*) as rows from put)"
        )

    @property
    def stage_columns(self) -> list[str]:
        """The columns of a stage, in the order in which the queries below give them."""
        return [_KIND, *(column.name for column in self.columns)]

    def changed_rows(self, move: MoveId, schema: SchemaName, tenant_no: TenantNo) -> str:
        """The rows of the keys that are noted, as they are now, and the keys that are gone.

        The key too is the row's: equal keys can be written in several ways (1 and 1.00).
        """
        keys = {column.name for column in self.key}
        gone = f"r.{TENANT_COLUMN} is null"
        values = [
            f"case when {gone} then {column.of('d')} else {column.carried('r')} end"
            if column.name in keys
            else f"{tenant_no:d}::bigint"
            if column.name == TENANT_COLUMN
            else column.carried("r")
            for column in self.columns
        ]
        return pinned(
            f"select case when {gone} then {GONE} else {CHANGED} end::smallint, "
            f"{', '.join(values)} from {self._noted(move)} d "
            f"left join {self._row(schema, self._is_row(tenant_no))} r on true"
        )

    def chunk_end(
        self,
        schema: SchemaName,
        tenant_no: TenantNo,
        *,
        after: Sequence[str] | None,
        until: Sequence[str],
        rows: int,
    ) -> str:
        """The key of the row that comes so many after a key, as texts; no row when it is too few.

        `until` is the highest key that there was when changes were noted already: what comes beyond
        it later is noted, and a copy that followed it might never end.
        """
        texts = ", ".join(f"{column.of('r')}::pg_catalog.text" for column in self.key)
        key = ", ".join(column.of("r") for column in self.key)
        return pinned(
            f"select array[{texts}] as key from {self.at(schema)} r "
            f"where {self._between(tenant_no, after, until)} "
            f"order by {key} offset {rows - 1:d} limit 1"
        )

    def chunk(
        self,
        move: MoveId,
        schema: SchemaName,
        tenant_no: TenantNo,
        *,
        after: Sequence[str] | None,
        until: Sequence[str],
    ) -> str:
        """The rows of the first copy up to a key, but for those noted."""
        values = ", ".join(column.carried("r") for column in self.columns)
        noted = f"select from {self.notes(move)} d where {self._is_row(tenant_no)}"
        return pinned(
            f"select {CHUNK}::smallint, {values} from {self.at(schema)} r "
            f"where {self._between(tenant_no, after, until)} and not exists ({noted})"
        )

    def highest_key(self, schema: SchemaName, tenant_no: TenantNo) -> str:
        """The highest key of the tenant, as texts; no row for none."""
        texts = ", ".join(f"{column.of('r')}::pg_catalog.text" for column in self.key)
        order = ", ".join(f"{column.of('r')} desc" for column in self.key)
        return pinned(
            f"select array[{texts}] as key from {self.at(schema)} r "
            f"where r.{TENANT_COLUMN} = {tenant_no:d} order by {order} limit 1"
        )

    # What the target does

    def remove_changed(self, schema: SchemaName, tenant_no: TenantNo) -> str:
        """Takes away what is in the stage, but for the chunk's rows, which were never there.

        With a deferrable key they are taken away too: it cannot decide about conflicts.
        """
        which = "" if self.deferrable_key else f"where s.{_KIND} <> {CHUNK}"
        row = self._row(schema, self._is_staged(tenant_no), "r.ctid as place")
        # By their places, which are LEAKPROOF, so that no plan reads all that is there.
        return pinned(
            f"delete from {self.at(schema)} r where r.{TENANT_COLUMN} = {tenant_no:d} "
            f"and r.ctid = any (array(select x.place from {self._staged(which)} s "
            f"cross join {row} x))"
        )

    def take(self, schema: SchemaName) -> str:
        """Puts the rows of the stage in. A row of a chunk can be there already: as it is now."""
        names = ", ".join(column.quoted for column in self.columns)
        values = ", ".join(column.taken("s") for column in self.columns)
        key = ", ".join((TENANT_COLUMN, *(column.quoted for column in self.key)))
        conflict = "" if self.deferrable_key else f" on conflict ({key}) do nothing"
        return pinned(
            f"insert into {self.at(schema)} ({names}) overriding system value "
            f"select {values} from {self.stage} s where s.{_KIND} <> {GONE}{conflict}"
        )

    # What is compared

    def digest(
        self, schema: SchemaName, tenant_no: TenantNo, *, notes: MoveId | None, only: bool
    ) -> str:
        """How many rows there are, and the sum and the exclusive or of their hashes.

        `only` takes just the rows of the keys that are noted (or staged, without `notes`), and
        otherwise all but those. The order of rows is of no account.
        """
        values = ", ".join(column.hashed("r") for column in self.columns)
        is_row = self._is_staged(tenant_no) if notes is None else self._is_row(tenant_no)
        if only:
            keys = f"{self._staged()} s" if notes is None else f"{self._noted(notes)} d"
            rows = f"{keys} cross join {self._row(schema, is_row)} r"
        else:
            keys = f"{self.stage} s" if notes is None else f"{self.notes(notes)} d"
            rows = (
                f"{self.at(schema)} r where r.{TENANT_COLUMN} = {tenant_no:d} "
                f"and not exists (select from {keys} where {is_row})"
            )
        return pinned(
            "select count(*)::bigint as rows, coalesce(sum(h::numeric), 0)::text as sum, "
            "coalesce(bit_xor(h), 0) as xor from ("
            f"select hash_record_extended(row({values}), 0) as h from {rows}) hashes"
        )

    def _noted(self, move: MoveId) -> str:
        """Each key that is noted, once."""
        names = ", ".join(column.quoted for column in self.key)
        return f"(select distinct {names} from {self.notes(move)})"

    def _staged(self, which: str = "") -> str:
        """Each key in the stage, once."""
        names = ", ".join(column.quoted for column in self.key)
        return f"(select distinct {names} from {self.stage} s {which})"

    def _row(self, schema: SchemaName, is_row: str, values: str = "r.*") -> str:
        """The row of a key, looked up for each key.

        OFFSET keeps PostgreSQL from joining the tables in another way, whatever it believes of how
        many rows they have: a tenant that is held cannot wait until all its rows were read. Keys
        for which row security lets no index be used are joined as PostgreSQL likes.
        """
        fence = " offset 0" if all(column.is_looked_up for column in self.key) else ""
        return f"lateral (select {values} from {self.at(schema)} r where {is_row}{fence})"

    def _between(
        self, tenant_no: TenantNo, after: Sequence[str] | None, until: Sequence[str]
    ) -> str:
        key = ", ".join(column.of("r") for column in self.key)
        text = f"r.{TENANT_COLUMN} = {tenant_no:d} and ({key}) <= ({self._key_of(until)})"
        return text if after is None else f"{text} and ({key}) > ({self._key_of(after)})"

    def _key_of(self, texts: Sequence[str]) -> str:
        """A key that is given by texts."""
        parts = zip(self.key, texts, strict=True)
        return ", ".join(f"{quote_literal(text)}::{column.key_type}" for column, text in parts)

    def _is_row(self, tenant_no: TenantNo) -> str:
        """Whether row r of the table is the one of the noted key d."""
        same = " and ".join(f"{column.of('r')} = {column.compared('d')}" for column in self.key)
        return f"r.{TENANT_COLUMN} = {tenant_no:d} and {same}"

    def _is_staged(self, tenant_no: TenantNo) -> str:
        """Whether row r of the table is the one of the staged row s."""
        same = " and ".join(f"{column.of('r')} = {column.compared('s')}" for column in self.key)
        return f"r.{TENANT_COLUMN} = {tenant_no:d} and {same}"
