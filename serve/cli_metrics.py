"""`tenancy metrics`: what was measured of operations, from the files under TENANCY_HOME."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.identifiers import parse_tenant_id
from tenancy.data_isolation.engine.busiest import Measure
from tenancy.data_isolation.serve.terminal import (
    AsJson,
    CommandError,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.window_reader import Usage

_LIMIT_MAX: Final = 1_000
_COLUMNS: Final = (
    *("tenant", "statement", "kind", "tables", "ops", "ops/s", "errors", "hits", "p50 ms"),
    *("p95 ms", "p99 ms", "queue ms", "busy s", "busy %", "cpu s", "rows", "bytes"),
)

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What was measured of tenants' operations."""


@app.command()
def top(
    by: Annotated[Measure, typer.Option("--by", help="By what.")] = Measure.BUSY,
    last_s: Annotated[
        float, typer.Option("--last", min=1, max=315_360_000, help="In the last so many seconds.")
    ] = 3_600.0,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant alone.")] = None,
    statement: Annotated[
        str | None,
        typer.Option("--statement", help="Of this SQL alone, whatever values stand in it."),
    ] = None,
    per_tenant: Annotated[
        bool, typer.Option("--per-tenant", help="All statements of a tenant in one line.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=_LIMIT_MAX, help="So many lines at most.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List the tenants and kinds of statement that took most, of windows that have ended.

    A kind is told by its fingerprint and the tables that it names: texts are not kept. Which kind a
    text is, --statement finds out.
    """
    # Imported late: it takes a moment, and every other command does without.
    try:
        from tenancy.data_isolation.engine.window_reader import busiest
    except ImportError as error:
        raise CommandError(
            f"the files cannot be read: {error}", "install the extra `serve`"
        ) from None

    home = Settings.from_env().home
    until = datetime.now(UTC)
    try:
        found = busiest(
            home,
            since=until - timedelta(seconds=last_s),
            until=until,
            by=by,
            limit=limit,
            tenant_id=None if tenant is None else parse_tenant_id(tenant),
            fingerprint=None if statement is None else _fingerprint(statement),
            per_tenant=per_tenant,
        )
    except OSError as error:
        raise CommandError(
            f"{error.filename or home} cannot be read: {error.strerror}",
            "the user that the runtime runs as can read it",
        ) from None
    if as_json:
        print_json({"seconds": last_s, "by": by.value, "usage": [_plain(item) for item in found]})
        return
    if not found:
        whose = "" if tenant is None else f" of tenant {tenant!r}"
        whose += "" if statement is None else f" of statement {_fingerprint(statement)}"
        note(
            f"nothing{whose} was measured in the last {last_s:g} s; windows are told when they end"
        )
        return
    print_table(_COLUMNS, [_row(item) for item in found])
    lines = f"{len(found)} line{'' if len(found) == 1 else 's'}"
    note(f"({lines}, of the last {last_s:g} s, by {by.value}; a window is told when it has ended)")


def _fingerprint(statement: str) -> str:
    """The fingerprint that the guard gives to the text. Raises `StatementSyntaxError`."""
    from tenancy.data_isolation.engine.placeholders import number_placeholders
    from tenancy.data_isolation.engine.syntax_tree import fingerprint, parse

    text = number_placeholders(statement).text
    parse(text)  # It says what is wrong with a text that is no SQL.
    return fingerprint(text)


def _plain(item: Usage) -> dict[str, Any]:
    return dataclasses.asdict(item)


def _row(item: Usage) -> tuple[str, ...]:
    errors = item.refused + item.failed + item.unavailable + item.cancelled
    return (
        item.tenant_id or "(others)",
        item.fingerprint,
        item.kind or "",
        ", ".join(item.tables),
        f"{item.operations:,}",
        f"{item.operations_per_s:,.2f}",
        f"{errors:,}",
        f"{item.cache_hits:,}",
        *(_scaled(value, 1e3) for value in (item.latency_p50_s, item.latency_p95_s)),
        _scaled(item.latency_p99_s, 1e3),
        _scaled(item.queue_mean_s, 1e3),
        _scaled(item.busy_s, 1),
        _scaled(item.busy_share, 100),
        _scaled(item.cpu_s, 1),
        f"{item.rows:,}",
        f"{item.result_bytes:,}",
    )


def _scaled(value: float | None, factor: float) -> str:
    """A number to three digits; what is not known is a dash."""
    if value is None:
        return "-"
    scaled = value * factor
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"
