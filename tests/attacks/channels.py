"""What tenants may learn or do in spite of everything, and why that is accepted.

Each entry stands in `docs/attacks.md` as well; a test holds the two against each other.
"""

from __future__ import annotations

from typing import Final

#: Name of a channel: what it is, for whom, and why it stays open or who watches it.
CHANNELS: Final = {
    "login-defaults": (
        "A login can change its own password and defaults (ALTER ROLE CURRENT_USER). PostgreSQL "
        "has no way to forbid it. Sessions pin what matters when they start, so that nobody's "
        "rows or answers change; the watchdog takes the rest back within a second."
    ),
    "own-settings": (
        "A session can set its own statement_timeout and work_mem. PostgreSQL has no way to "
        "forbid it; the watchdog holds limits from outside the session."
    ),
    "table-locks": (
        "A right to UPDATE or DELETE is a right to LOCK TABLE. On shared tables it holds up the "
        "other tenants until the watchdog ends the session, some 40 ms."
    ),
    "open-transactions": (
        "A session can leave a transaction open. The watchdog ends it when it gets too old."
    ),
    "notifications": (
        "LISTEN and NOTIFY need no privilege, and channels belong to the database. No statement "
        "of the runtime's own uses them; tenants with direct SQL can send each other messages."
    ),
    "shared-estimates": (
        "pg_class.reltuples, EXPLAIN and the ctid of one's own rows tell how many rows a shared "
        "table has, over all tenants."
    ),
    "foreign-estimates": (
        "System catalogs are readable by every login of a database: pg_class.reltuples of "
        "another tenant's tables tells roughly how many rows they have. Names are opaque."
    ),
    "catalog-names": (
        "System catalogs are readable by every login: the names of databases, roles, schemas, "
        "tables and columns are visible. They are opaque, and the shape of the tables is the "
        "same for all tenants."
    ),
    "transaction-numbers": (
        "Transaction numbers, log positions and timing tell how much is written on a server."
    ),
    "sequence-use": (
        "An identity column needs a right to nextval: a tenant can take numbers without using "
        "them, of a shared table's sequence those of its neighbours as well. A bigint lasts; "
        "smallint and integer sequences of shared tables can be used up."
    ),
    "shared-login": (
        "The tenants of level ROW share a login, whose connections are not limited by "
        "PostgreSQL per tenant. Its password is derived from the master key and leaves the "
        "runtime never; the runtime bounds the sessions of each tenant."
    ),
    "sequence-gaps": (
        "Numbers from a sequence of a shared table are shared by its tenants: gaps tell that "
        "others insert."
    ),
}
