"""Runs one of the checkers with sessions bound as the runtime binds them.

The checkers tell a database who they are by settings of their own (`request.jwt.claims` and the
like), which mean nothing here. This puts a signed binding in the place of those settings, and gives
the rows that they make what the tables need; what is probed, and how it is judged, is theirs. It
runs in their environment and knows of the product only what a binding looks like.

    run_bound.py pgrls ARGUMENTS...     the command `pgrls`
    run_bound.py rlsgrid ARGUMENTS...   the command `rlsgrid`
    run_bound.py own-rows CONFIG        every probe of rlsgrid by a tenant on its own rows

`ORACLE_BINDING` is JSON: the number and secret of the key, and the tenants that exist. What rlsgrid
probed goes to the file `ORACLE_PROBES`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import psycopg

_BINDING = json.loads(os.environ["ORACLE_BINDING"])
_SET_TEXT = "select pg_catalog.set_config('tenancy.binding', %s, %s)"
_IDENTITY_COLUMNS = """
select space.nspname, class.relname, attribute.attname
from pg_attribute as attribute
join pg_class as class on class.oid = attribute.attrelid
join pg_namespace as space on space.oid = class.relnamespace
where attribute.attidentity <> ''
"""


def signed(tenant_no: int | str, backend_pid: int) -> str:
    """`key.tenant.epoch.pid.hmac`, as `tenancy.tenant()` expects it."""
    message = f"{_BINDING['key_id']}.{tenant_no}.1.{backend_pid}"
    secret = bytes.fromhex(_BINDING["secret"])
    return f"{message}.{hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()}"


def run_pgrls() -> None:
    """`pgrls`, whose live probe becomes a tenant by its binding.

    Its rows leave out what it knows no value for and the table has a default for, and may set
    identity columns, so that it can probe more tables.
    """
    from pgrls import cli, probe

    backend_pid = 0
    run_steps, identity = probe._run_probe_steps, probe._session_identity_setup
    row_columns, insert_sql = probe._row_columns, probe._insert_sql

    def run_probe_steps(cursor: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal backend_pid
        backend_pid = cursor.connection.info.backend_pid
        return run_steps(cursor, *arguments, **options)

    def session_identity_setup(auth_sql: str, tenant: str) -> tuple[list[str], str | None]:
        if "tenancy.tenant()" not in auth_sql:
            return identity(auth_sql, tenant)
        text = signed(tenant, backend_pid)
        return [f"select pg_catalog.set_config('tenancy.binding', '{text}', true)"], None

    def known_columns(table: Any, witness: Any) -> Any:
        row, unpinned, unknown = row_columns(table, witness)
        types = {column.name: column.data_type for column in table.column_details}
        blobs = [(name, "''") for name in unknown if types[name] == "bytea"]
        return [pair for pair in row if pair[0] not in unknown] + blobs, unpinned, []

    def insert_identity(*arguments: Any) -> str:
        return insert_sql(*arguments).replace(") VALUES (", ") OVERRIDING SYSTEM VALUE VALUES (", 1)

    probe._row_columns, probe._insert_sql = known_columns, insert_identity
    probe._run_probe_steps = run_probe_steps
    probe._session_identity_setup = session_identity_setup
    cli.main()


def run_rlsgrid() -> None:
    """`rlsgrid`, and afterwards what it probed and what it left out."""
    from rlsgrid import cli

    probes = _bind_rlsgrid()
    try:
        cli.main()
    finally:
        Path(os.environ["ORACLE_PROBES"]).write_text(json.dumps(probes))


def probe_own_rows(config_path: str) -> None:
    """What a tenant may do with its own rows: for each probe "seen", "nothing" or why not."""
    from rlsgrid import cli, fixtures
    from rlsgrid.config import Config
    from rlsgrid.fuzz import chaos
    from rlsgrid.matrix import Expected, build_matrix

    _bind_rlsgrid()
    config = Config.load(config_path)
    known = cli.run_introspect(config)
    seeded = fixtures.seed_tenants(known, config, tenants=2)
    found = []
    try:
        with psycopg.connect(config.connection.url) as connection:
            for cell in build_matrix(known, config):
                if cell.expected is not Expected.CONDITIONAL:
                    continue
                tenant = seeded.tenants[0]
                outcome = chaos._probe_jwt(connection, cell, tenant, tenant, config, known)
                said = {chaos.Breach: "seen", type(None): "nothing"}.get(type(outcome))
                name = [cell.role, cell.schema, cell.table, cell.operation]
                found.append([*name, said or outcome.reason])
    finally:
        fixtures.teardown_state(seeded.to_state(), config)
    print(json.dumps(found))


def _bind_rlsgrid() -> dict[str, Any]:
    """Put bindings in; what will be known about seeding and probes."""
    from rlsgrid import cli, fixtures
    from rlsgrid.fuzz import chaos

    numbers = itertools.cycle(_BINDING["tenants"])
    seeded_tenant, insert_row, seed = (
        fixtures.SeededTenant, fixtures._insert_row, fixtures.seed_tenants,
    )  # fmt: skip
    probes: dict[str, Any] = {"not_seeded": [], "probed": {}, "failed": []}

    def tenant(tenant_id: str, user_id: str) -> Any:
        return seeded_tenant(tenant_id=str(next(numbers)), user_id=user_id)

    def bound_insert(connection: Any, **what: Any) -> Any:
        text = signed(what["tenant"].tenant_id, connection.info.backend_pid)
        connection.execute(_SET_TEXT, (text, False))
        return insert_row(connection, **what)

    def seed_and_tell(*arguments: Any, **options: Any) -> Any:
        report = seed(*arguments, **options)
        probes["not_seeded"] = report.skipped
        return report

    def set_binding(cursor: Any, _tenancy: Any, actor: Any) -> None:
        text = signed(actor.tenant_id, cursor.connection.info.backend_pid)
        cursor.execute(_SET_TEXT, (text, True))

    cli.run_introspect = _identity_is_a_default(cli.run_introspect)
    fixtures.SeededTenant, fixtures._insert_row = tenant, bound_insert
    fixtures.seed_tenants = cli.seed_tenants = seed_and_tell
    chaos._set_jwt_claims = set_binding
    for operation in ("select", "insert", "update", "delete"):
        name = f"_do_{operation}"
        setattr(chaos, name, _told(getattr(chaos, name), probes))
    return probes


def _identity_is_a_default(introspect: Any) -> Any:
    """Lets the checker leave identity columns to the database, as it does with other defaults."""

    def run(config: Any) -> Any:
        known = introspect(config)
        with psycopg.connect(config.connection.url) as connection:
            identity = set(connection.execute(_IDENTITY_COLUMNS).fetchall())
        known.columns = [
            dataclasses.replace(column, has_default=True)
            if (column.schema, column.table, column.name) in identity
            else column
            for column in known.columns
        ]
        return known

    return run


def _told(probe: Any, probes: dict[str, Any]) -> Any:
    """A probe that also counts itself, and says what the database said."""

    @functools.wraps(probe)
    def run(cursor: Any, cell: Any, *arguments: Any) -> Any:
        name = f"{cell.role} {cell.schema}.{cell.table} {cell.operation}"
        probes["probed"][name] = probes["probed"].get(name, 0) + 1
        try:
            return probe(cursor, cell, *arguments)
        except psycopg.Error as error:
            probes["failed"].append([name, error.sqlstate, str(error).splitlines()[0]])
            raise

    return run


if __name__ == "__main__":
    command = sys.argv.pop(1)
    if command == "pgrls":
        run_pgrls()
    elif command == "rlsgrid":
        run_rlsgrid()
    else:
        probe_own_rows(sys.argv[1])
