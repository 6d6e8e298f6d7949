"""The statement guard: what tenants may run, and the text to run for it.

A tenant's SQL is parsed with PostgreSQL's own grammar (libpg_query of PostgreSQL 18), held against
allow-lists (`guard_rules`), and changed where the column that tells tenants apart would show
(`rewriting`). The guard is the outer wall: the boundary inside the databases holds without it.

Rules this module keeps:

* One statement at a time; whatever is not known to be harmless is refused.
* Only errors of `core.errors` leave, and each says what to do instead.
* The same text gives the same answer, as long as the schema is the same.
* Nothing here does I/O. Memory is bounded: the cache by entries and bytes, a statement by bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tenancy.data_isolation.core.errors import (
    RequestTooLargeError,
    StatementError,
    StatementSyntaxError,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.guard_rules import (
    ALLOWED,
    Findings,
    check_kind,
    check_nodes,
    check_parameters,
)
from tenancy.data_isolation.engine.placeholders import number_placeholders
from tenancy.data_isolation.engine.repeatable import changed_tables, is_repeatable
from tenancy.data_isolation.engine.rewriting import Rewriter
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    Tree,
    fingerprint,
    parse,
    pb,
    position,
    statement_nodes,
    write,
)
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

_NOTHING = VisibleSchema()
#: Text of this length takes a few tens of milliseconds to read.
_LONG_CHARACTERS = 8_192
#: What a cached entry takes besides its texts, roughly.
_ENTRY_BYTES = 2_048


class Guard:
    """Checks statements. Safe for use from several threads at a time.

    `schema` is what statements may name; without one they may name no table.
    `extra_functions` names further functions that statements may call; it is asked whenever a
    statement is read for the first time, and its functions are taken to run code of the schema.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        schema: VisibleSchema | None = None,
        extra_functions: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        self._bytes_max = settings.statement_bytes_max
        self._params_max = settings.statement_params_max
        self._schema = schema or _NOTHING
        self._extra_functions = extra_functions
        self._cache = _Cache(
            entries_max=settings.guard_cache_entries, bytes_max=settings.guard_cache_bytes_max
        )

    def check(self, query: str, *, schema: VisibleSchema | None = None) -> Statement:
        """What `query` is, with the text to run for it.

        `schema` is the version to check against, by default the one of the guard. Raises
        `StatementSyntaxError`, `StatementForbiddenError`, `RequestTooLargeError`, or
        `StatementError` with PostgreSQL's code where the schema has no such table or column.
        """
        if not isinstance(query, str):
            raise StatementSyntaxError(f"the statement is a {type(query).__name__}, not text")
        schema = schema or self._schema
        key = (schema, query)
        found = self._cache.get(key)
        if found is None:
            found = self._read(query, schema)
            self._cache.put(key, found, _size(query, found))
        if isinstance(found, Statement):
            return found
        raise found.error()

    def is_slow(self, query: str, *, schema: VisibleSchema | None = None) -> bool:
        """Whether `check` would take many milliseconds: the text is long and not in the cache.

        Then an event loop should leave it to a thread.
        """
        return len(query) > _LONG_CHARACTERS and (schema or self._schema, query) not in self._cache

    def reset(self, schema: VisibleSchema | None) -> None:
        """Check against another version of the schema from now on, and forget what was cached."""
        self._schema = schema or _NOTHING
        self._cache.clear()

    def _read(self, query: str, schema: VisibleSchema) -> Statement | _Failure:
        try:
            return self._checked(query, schema)
        except RecursionError:
            # The bound on a tree's depth comes first, unless the caller is deep already. So this
            # says as much about the caller as about the text, and is not kept for the next one.
            raise StatementSyntaxError("the statement nests too deeply; split it") from None
        except (StatementError, RequestTooLargeError) as error:
            return _Failure(type(error), error.args)

    def _checked(self, query: str, schema: VisibleSchema) -> Statement:
        self._check_size(query)
        numbered = number_placeholders(query)
        tree = parse(numbered.text)
        node = _only_statement(numbered.text, tree)
        check_kind(numbered.text, node)
        known = self._with_extra_functions(schema)
        findings = check_nodes(numbered.text, node, known)
        count = check_parameters(findings.parameters, self._params_max)
        rewriter = Rewriter(numbered.text, schema)
        rewriter.rewrite(node)
        return Statement(
            source=query,
            text=write(tree) if rewriter.changed else numbered.text,
            kind=_kind(findings),
            fingerprint=fingerprint(numbered.text),
            tables=frozenset(rewriter.tables),
            functions=frozenset(findings.functions),
            parameter_names=numbered.names,
            parameter_count=count,
            returns_rows=isinstance(node, pb.SelectStmt) or node.HasField("returning_clause"),
            plain=_is_plain(findings, rewriter.tables, schema),
            repeatable=is_repeatable(node, findings, rewriter.tables, schema),
            changes=changed_tables(findings, rewriter.tables, schema),
        )

    def _check_size(self, query: str) -> None:
        # Characters first: there are never more of them than bytes.
        size = len(query)
        if size <= self._bytes_max:
            size = len(query.encode(errors="surrogatepass"))
        if size > self._bytes_max:
            raise RequestTooLargeError(
                f"the statement has {size} bytes; {self._bytes_max} are allowed. "
                "Send values as parameters, in arrays where there are many"
            )

    def _with_extra_functions(self, schema: VisibleSchema) -> VisibleSchema:
        extra = self._extra_functions() if self._extra_functions else frozenset()
        return replace(schema, functions=schema.functions | extra) if extra else schema


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error to raise anew each time, so that no two callers share one with its traceback."""

    kind: type[StatementError] | type[RequestTooLargeError]
    args: tuple[str | float | None, ...]

    def error(self) -> Exception:
        return self.kind(*self.args)  # type: ignore[arg-type]


class _Cache:
    """Answers by schema and text, the least recently used forgotten first.

    A hit takes no lock: each step of it is one operation of a C implementation on keys whose
    hashing and comparing runs no Python code. Changes are made under a lock.
    """

    def __init__(self, *, entries_max: int, bytes_max: int) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[tuple[VisibleSchema, str], tuple[Statement | _Failure, int]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, key: tuple[VisibleSchema, str]) -> Statement | _Failure | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        with suppress(KeyError):  # Another thread may have dropped it; the answer is right still.
            self._entries.move_to_end(key)
        return entry[0]

    def __contains__(self, key: tuple[VisibleSchema, str]) -> bool:
        return key in self._entries

    def put(self, key: tuple[VisibleSchema, str], found: Statement | _Failure, size: int) -> None:
        with self._lock:
            if size > self._bytes_max or key in self._entries:
                return
            self._entries[key] = (found, size)
            self._bytes += size
            while len(self._entries) > self._entries_max or self._bytes > self._bytes_max:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0


def _size(query: str, found: Statement | _Failure) -> int:
    """Bytes that an entry keeps in memory, at most (a character takes up to four)."""
    texts = len(query)
    if isinstance(found, Statement) and found.text is not query:
        texts += len(found.text)
    return _ENTRY_BYTES + 4 * texts


def _only_statement(sql: str, tree: Tree) -> Node:
    found = statement_nodes(tree)
    if not found:
        raise StatementSyntaxError(f"the text holds no statement; {ALLOWED}", "42601")
    if len(found) > 1:
        second = [raw for raw in tree.stmts if raw.HasField("stmt")][1]
        start = second.stmt_location
        text = sql.encode()[start:].decode(errors="replace")
        start += len(text.encode()) - len(text.lstrip().encode())
        raise StatementSyntaxError(
            f"the text holds {len(found)} statements; send them one at a time "
            f"(the second starts at {position(sql, start)})",
            "42601",
        )
    return found[0]


def _kind(findings: Findings) -> StatementKind:
    # A function of the schema may write, so it gets a transaction that can.
    if findings.writes or findings.schema_functions:
        return StatementKind.WRITE
    return StatementKind.READ


def _is_plain(findings: Findings, tables: set[str], schema: VisibleSchema) -> bool:
    runs_code = any(schema.relations[name].runs_code for name in tables)
    # A type of the schema can be a domain, whose checks can call functions.
    return not (runs_code or findings.schema_functions or findings.schema_types)
