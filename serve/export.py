"""The rows of one tenant as files.

::

    manifest.json      what the export is of, and of each table: columns, rows, bytes, SHA-256
    <table>.ndjson     a line for each row, in the order of the primary key: an object of the
                       columns' values in the wire form of `core.types.QueryResult`

What the wire form cannot tell is not told here either: JSON's null is null like NULL, and an array
has no lower bounds. JSON that cannot be read (names that stand twice, great depth) is written as
PostgreSQL has it.

Characters of a table's name that a file's name cannot have are written as `%` and two hexadecimal
digits for each byte; the manifest has both names.

What is promised, since pages are read one after the other while the tenant is in use: a row that is
there from beginning to end and is not changed is in its file exactly once. A row that is written
meanwhile is in it as it was at some moment, or not at all, so rows of two tables need not fit each
other. The export ends with an error when the schema changes under it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from tenancy.data_isolation.core import TenantStatus
from tenancy.data_isolation.engine.state_directory import replace_file
from tenancy.data_isolation.serve.fresh_directory import fresh_directory
from tenancy.data_isolation.serve.row_file import Content, RowFile, file_name
from tenancy.data_isolation.serve.runtime_client import AnswerError, segment
from tenancy.data_isolation.serve.table_pages import Table, read_pages, shown
from tenancy.data_isolation.serve.terminal import CommandError

FORMAT: Final = "tenancy-export"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"

_SCHEMA_PATH: Final = "/v1/schema"
#: Pauses before a question that could not be answered is asked again.
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
#: SQLSTATEs of a table or column that is not there (PostgreSQL manual, appendix A).
_UNKNOWN: Final = frozenset({"42P01", "42703"})


class Client(Protocol):
    """The way to the runtime; `RuntimeClient` is one. Methods raise `CommandError`."""

    def get(self, path: str, **params: Any) -> Any:
        """What is at that path."""
        ...

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a body."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an export is: `table` is being read, `position` tables are done, with `rows` rows."""

    table: str
    position: int
    tables: int
    rows: int


class Export:
    """One export of one tenant. Blocks; for one thread."""

    def __init__(
        self,
        client: Client,
        tenant: str,
        *,
        report: Callable[[Progress], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._tenant = tenant
        self._path = f"/v1/tenants/{segment(tenant)}"
        self._report = report
        self._pause = pause
        self._rows = 0

    def write(self, target: Path) -> dict[str, Any]:
        """Write the export as the directory `target`, which `check_fresh` gave; the manifest.

        Raises `CommandError`, after which nothing is left.
        """
        tenant = self._known_tenant()
        schema = self._client.get(_SCHEMA_PATH)
        relations = [item for item in schema["relations"] if item["kind"] == "table"]
        started_at = _now()
        with fresh_directory(target) as directory:
            tables = []
            for position, relation in enumerate(relations):
                with _naming(relation["name"]):
                    tables.append(self._write_table(directory, relation, position, len(relations)))
            self._check_schema(schema)
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "tenant_id": tenant["tenant_id"],
                "isolation_level": tenant["isolation_level"],
                "started_at": started_at,
                "exported_at": _now(),
                "schema_version": schema["version"],
                "tables": tables,
            }
            text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
            replace_file(directory / MANIFEST, text.encode())
        return manifest

    def _known_tenant(self) -> Mapping[str, Any]:
        tenant: Mapping[str, Any] = self._client.get(self._path)
        status = tenant["status"]
        if status == TenantStatus.SUSPENDED:
            raise CommandError(
                f"tenant {self._tenant} is suspended, so its rows cannot be read",
                f"`tenancy tenant resume {self._tenant}` first",
            )
        if status != TenantStatus.ACTIVE:
            raise CommandError(f"tenant {self._tenant} is {status}; its rows cannot be read now")
        return tenant

    def _write_table(
        self, directory: Path, relation: Mapping[str, Any], position: int, tables: int
    ) -> dict[str, Any]:
        """Write a table's file, read it again, and say what is in it."""
        name = relation["name"]
        table = Table(
            name=name,
            columns=tuple(column["name"] for column in relation["columns"]),
            primary_key=tuple(relation["primary_key"]),
        )
        path = directory / file_name(name)
        self._tell(name, position, tables)
        with RowFile(path) as file:
            for page in read_pages(table, self._ask):
                file.write(page)
                self._rows += page.rows
                self._tell(name, position, tables)
        content = file.content
        if Content.of(path) != content:
            raise CommandError(f"{path.name} does not hold what was written to it; check the disk")
        return {
            "name": name,
            "file": path.name,
            "primary_key": relation["primary_key"],
            "columns": relation["columns"],
            "rows": content.rows,
            "bytes": content.bytes,
            "sha256": content.sha256,
        }

    def _tell(self, table: str, position: int, tables: int) -> None:
        self._report(Progress(table=table, position=position, tables=tables, rows=self._rows))

    def _ask(self, query: str, params: list[Any]) -> Mapping[str, Any]:
        """Run a statement of the tenant, again where that can help: it only reads."""
        body = {"query": query, "params": params}
        for pause_s in _PAUSES_S:
            try:
                answer: Mapping[str, Any] = self._client.post(f"{self._path}/query", body)
                return answer
            except AnswerError as error:
                if not error.retryable:
                    raise
                self._pause(max(pause_s, error.retry_after_s))
        answer = self._client.post(f"{self._path}/query", body)
        return answer

    def _check_schema(self, before: Mapping[str, Any]) -> None:
        """Raise `CommandError` when what was read is not what the schema says any more."""
        after = self._client.get(_SCHEMA_PATH)
        if (after["version"], after["relations"]) != (before["version"], before["relations"]):
            raise CommandError(
                "the schema has changed meanwhile",
                "export again when `tenancy schema apply` is done",
            )


@contextmanager
def _naming(table: str) -> Iterator[None]:
    """Have errors of the runtime say at which table they came."""
    try:
        yield
    except CommandError as error:
        unknown = isinstance(error, AnswerError) and error.sqlstate in _UNKNOWN
        hint = (
            "`tenancy schema status` shows whether copies of the schema are behind"
            if unknown
            else error.hint
        )
        raise CommandError(f"table {shown(table)}: {error}", hint, error.status) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
