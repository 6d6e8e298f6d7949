"""A finding of an inspection: what is wrong with which object, how bad it is, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenancy.data_isolation.core.identifiers import quote_literal

#: How a mend starts that works as the owner.
OWNERS_CALL: Final = "select tenancy.run("
#: The part of a mend that has the server read its configuration again.
RELOAD: Final = "select pg_catalog.pg_reload_conf()"


class Severity(StrEnum):
    """How bad a finding is."""

    #: A tenant may cross its boundary. Nothing starts while there is one.
    UNSAFE = "unsafe"
    #: Some tenant, or a part of the runtime, cannot work as it should.
    BROKEN = "broken"
    #: It works and holds, and should be mended all the same.
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is not as it must be."""

    #: Which check found it: a word that stays the same from release to release.
    check: str
    severity: Severity
    server: str
    #: The database it was found in; empty when it is about the server as a whole.
    database: str
    #: The role, database, schema, table, function, setting, file or process.
    subject: str
    problem: str
    #: SQL that mends it, run by the admin role in `database`, in this order. Empty when SQL cannot.
    statements: tuple[str, ...] = ()
    #: A command or an instruction that mends it, where SQL alone does not.
    advice: str = ""
    #: Whether a person has to decide or act: data would go, or there is more to do than SQL.
    by_hand: bool = False

    @property
    def mend(self) -> str:
        """The statements as one text, without the last semicolon."""
        return "; ".join(self.statements)

    @property
    def remedy(self) -> str:
        """What to do, as people read it."""
        where = f" (in database {self.database})" if self.database else ""
        sql = f"{self.mend}{where}" if self.mend else ""
        return "; ".join(part for part in (sql, self.advice) if part)

    def __str__(self) -> str:
        where = f"database {self.database}" if self.database else f"server {self.server}"
        # A whole function is no part of a message.
        mend = self.mend if "\n" not in self.mend else "tenancy doctor --mend"
        return f"{self.subject} {self.problem} ({where}); mend: {mend or self.advice};"


def by_owner(statements: Sequence[str]) -> tuple[str, ...]:
    """The statements as one that runs them as the owner, all or none.

    A definition can call functions of users, when it is made and when it is held against rows. What
    they call must never work as the admin, whoever carries the mend out.
    """
    if not statements:
        return ()
    literal = quote_literal(";\n".join(statements))
    return (f"{OWNERS_CALL}{literal}::pg_catalog.text)",)
