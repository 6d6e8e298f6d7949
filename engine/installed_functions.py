"""The runtime's own functions in a database: are they what this release installs?

The boundary is only as good as `tenancy.tenant()`. What has to be there is read from the SQL files
that install it, so the two cannot drift apart: of a function that several steps make, the last one
counts. A body in quotes is compared character by character. PostgreSQL stores a body in SQL syntax
as a parse tree and writes it out anew, so that of those `_DEPARSED` says how it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import asyncpg

from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.layout import KEEPER_ROLE, OWNER_ROLE
from tenancy.data_isolation.engine.sql_files import SqlFile

CHECK: Final = "functions"
_SQL = SqlFile("audit_functions.sql")
#: Newest major version on which `_DEPARSED` was seen to hold.
_DEPARSED_UNTIL: Final = 18
_DEPARSED: Final[Mapping[str, str]] = {
    "tenancy.lock_key": "BEGIN ATOMIC SELECT (tenant_no | '4611686018427387904'::bigint); END",
    "tenancy.bound_tenant": (
        "BEGIN ATOMIC SELECT (NULLIF(split_part(current_setting('tenancy.binding'::text, true), "
        "'.'::text, 2), ''::text))::bigint AS \"nullif\"; END"
    ),
}
#: Functions that are not the keeper's. This one is SECURITY DEFINER to work as the owner.
_OWNERS: Final[Mapping[str, str]] = {"tenancy.run": OWNER_ROLE}
_CREATE: Final = re.compile(
    r"create (?:or replace )?function (?P<name>(?:tenancy|catalog)\.\w+)\((?P<arguments>.*?)\)\s+"
    r"returns\s(?P<options>.*?)"
    r"(?:as \$(?P<tag>\w*)\$(?P<body>.*?)\$(?P=tag)\$(?P<more>[^;]*)"
    r"|(?P<atomic>begin atomic.*?\nend));",
    re.DOTALL,
)
_DROP: Final = re.compile(r"drop function (?:if exists )?((?:tenancy|catalog)\.\w+)")
_TRIGGER: Final = re.compile(
    r"create (?:constraint )?trigger (?P<name>\w+)\s[^;]*?\son\s+"
    r"(?P<table>(?:tenancy|catalog)\.\w+)[^;]*;"
)
_VOLATILITY: Final = {"immutable": "i", "stable": "s", "volatile": "v"}
_PARALLEL: Final = {"safe": "s", "restricted": "r", "unsafe": "u"}


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledFunction:
    """A function as the release installs it."""

    #: With its schema, as `tenancy.tenant`.
    name: str
    language: str
    volatility: str
    parallel: str
    strict: bool
    security_definer: bool
    settings: tuple[str, ...]
    #: The body in quotes, or None when it is in SQL syntax.
    body: str | None
    #: What makes it, and what it needs after that.
    text: str

    @property
    def mend(self) -> str:
        """SQL that puts it back as it was."""
        return re.sub(r"^create (or replace )?", "create or replace ", self.text)

    @property
    def owner(self) -> str:
        """Whose it is."""
        return _OWNERS.get(self.name, KEEPER_ROLE)

    @property
    def made_again(self) -> tuple[str, ...]:
        """SQL that makes it when it is missing, its owner's."""
        made = (f"set role {self.owner}", self.mend, "reset role")
        if self.owner == KEEPER_ROLE:
            return made
        # No right on the schema is the owner's for longer than it takes.
        schema = self.name.partition(".")[0]
        return (
            f"grant usage, create on schema {schema} to {self.owner}",
            *made,
            f"revoke all on schema {schema} from {self.owner}",
        )


@cache
def release_functions(components: tuple[tuple[str, str], ...]) -> Mapping[str, InstalledFunction]:
    """The functions that statements make: (file, statement name), in the order they are run."""
    found: dict[str, InstalledFunction] = {}
    for file, name in components:
        text = SqlFile(file).statement(name)
        for gone in _DROP.findall(text):
            found.pop(gone, None)
        for function in _functions(text):
            found[function.name] = function
    return found


@cache
def release_triggers(components: tuple[tuple[str, str], ...]) -> Mapping[tuple[str, str], str]:
    """The triggers that statements make: (table, trigger) → what makes it."""
    texts = (SqlFile(file).statement(name) for file, name in components)
    return {
        (made["table"], made["name"]): made[0].rstrip(";")
        for text in texts
        for made in _TRIGGER.finditer(text)
    }


async def function_findings(
    connection: asyncpg.Connection,
    *,
    server: str,
    database: str,
    expected: Iterable[InstalledFunction],
) -> list[Finding]:
    """What is not as this release installs it in the database that `connection` is in.

    The connection's search path must hold nothing but `pg_catalog`.
    """
    by_name: dict[str, list[asyncpg.Record]] = {}
    for row in await connection.fetch(_SQL.statement("functions")):
        by_name.setdefault(row["name"], []).append(row)
    major = connection.get_server_version().major
    differences: list[_Difference] = []
    for function in expected:
        differences += _differences(function, by_name.pop(function.name, []), major)
    for rows in by_name.values():
        differences += [_stranger(row) for row in rows]
    return [
        Finding(
            check=CHECK,
            severity=item.severity,
            server=server,
            database=database,
            subject=f"function {item.name}",
            problem=item.problem,
            statements=item.statements,
        )
        for item in differences
    ]


@dataclass(frozen=True, slots=True)
class _Difference:
    name: str
    problem: str
    statements: tuple[str, ...]
    severity: Severity = Severity.UNSAFE


def _stranger(row: asyncpg.Record) -> _Difference:
    signature = row["signature"]
    problem = "is not one of the runtime's and stands in a schema of its own"
    return _Difference(signature, problem, (f"drop function {signature}",))


def _differences(
    function: InstalledFunction, rows: Sequence[asyncpg.Record], major: int
) -> Iterator[_Difference]:
    if not rows:
        yield _Difference(function.name, "is missing", function.made_again)
        return
    # Of several functions of the name the first one made is ours.
    row, *others = sorted(rows, key=lambda item: int(item["oid"]))
    wrong = [name for name, same in _compared(function, row).items() if not same]
    if wrong:
        # A later PostgreSQL may write the same parse tree in other words.
        unsure = wrong == ["body"] and function.body is None and major > _DEPARSED_UNTIL
        yield _Difference(
            function.name,
            f"was replaced: its {', '.join(wrong)} is not as the runtime made it",
            (function.mend,),
            Severity.WARNING if unsure else Severity.UNSAFE,
        )
    if row["owner"] != function.owner:
        change = f"alter function {row['signature']} owner to {function.owner}"
        yield _Difference(function.name, f"belongs to {row['owner']}", (change,))
    yield from (_stranger(other) for other in others)


def _compared(function: InstalledFunction, row: asyncpg.Record) -> dict[str, bool]:
    """What of a function is as it should be."""
    if function.body is not None:
        body = row["body"] == function.body
    else:
        written = " ".join((row["sql_body"] or "").split())
        body = written == _DEPARSED.get(function.name)
    return {
        "body": body,
        "language": row["language"] == function.language,
        "volatility": row["volatility"] == function.volatility,
        "parallel safety": row["parallel"] == function.parallel,
        "strictness": row["strict"] == function.strict,
        "security": row["security_definer"] == function.security_definer,
        "list of settings": tuple(row["settings"] or ()) == function.settings,
        "leakproofness": not row["leakproof"],
    }


def _functions(text: str) -> Iterator[InstalledFunction]:
    for found in _CREATE.finditer(text):
        options = " ".join(f"{found['options']} {found['more'] or ''}".split())
        words = options.split()
        yield InstalledFunction(
            name=found["name"],
            language=words[words.index("language") + 1],
            volatility=next((_VOLATILITY[word] for word in words if word in _VOLATILITY), "v"),
            parallel=_PARALLEL[words[words.index("parallel") + 1]] if "parallel" in words else "u",
            strict="strict" in words,
            security_definer="security definer" in options,
            settings=tuple(_settings(options)),
            body=found["body"],
            text=found[0].rstrip(";"),
        )


def _settings(options: str) -> Iterator[str]:
    for name, value in re.findall(r"\bset (\w+) = (.+?)(?= set |$)", options):
        yield f"{name}={value}"
