"""How much data a tenant has, counted as the tenant itself: row security limits what is seen."""

from __future__ import annotations

from tenancy.data_isolation.core.types import StatementKind, TenantSize
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.tenant_column import is_runtime_name
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

_SQL = SqlFile("size.sql")


async def measured_size(
    executor: Executor, route: Route, schema: VisibleSchema, *, rows_max: int
) -> TenantSize:
    """Count table after table, until `rows_max` rows were seen.

    Raises `StatementTimeoutError` and `UnavailableError`s.
    """
    rows = size = 0
    tables = [
        item
        for name, item in sorted(schema.relations.items())
        if not item.view and not is_runtime_name(name)
    ]
    for table in tables:
        left = rows_max - rows
        if left <= 0:
            return TenantSize(rows=rows, bytes=size, complete=False)
        result = await executor.ask(route, _statement(table), [left + 1])
        rows += result.rows[0][0]
        size += result.rows[0][1]
    return TenantSize(rows=min(rows, rows_max), bytes=size, complete=rows <= rows_max)


def _without_comment(text: str) -> str:
    return text.rpartition("\n")[2]


def _statement(table: VisibleRelation) -> Statement:
    columns = [_SQL.statement("column_size", column=name) for name in table.columns]
    sizes = " + ".join(_without_comment(text) for text in columns)
    text = _SQL.statement("table_size", table=table.name).replace("%s", sizes or "0", 1)
    return Statement(
        source=text,
        text=text,
        kind=StatementKind.READ,
        fingerprint="",
        tables=frozenset({table.name}),
        functions=frozenset(),
        parameter_names=None,
        parameter_count=1,
        returns_rows=True,
        plain=not table.runs_code,
    )
