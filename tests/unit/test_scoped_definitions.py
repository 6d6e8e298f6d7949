"""Statements of a migration, changed for tables that are scoped already."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.errors import SchemaRefusedError
from tenancy.data_isolation.engine.migration import Migration, parse_migration
from tenancy.data_isolation.engine.schema_script import Script, StepSort
from tenancy.data_isolation.engine.schema_snapshot import (
    ColumnShape,
    Constraint,
    Index,
    Relation,
    SchemaSnapshot,
)
from tenancy.data_isolation.engine.scoped_definitions import scoped_steps


def _table(name: str, *columns: str) -> Relation:
    names = (*columns[:2], "tenant_id", *columns[2:])
    return Relation(name=name, columns=tuple(ColumnShape(name=item, type="text") for item in names))


#: The tenant's column stands between the user's, as after ALTER TABLE ADD COLUMN.
SNAPSHOT = SchemaSnapshot(
    schema="app",
    relations=(_table("p", "id", "code", "late"), _table("q", "id", "p_id")),
    constraints=(
        Constraint(table="p", name="p_pkey", type="p", columns=("tenant_id", "id"), definition=""),
        Constraint(
            table="q",
            name="q_p_id_fkey",
            type="f",
            columns=("tenant_id", "p_id"),
            target="p",
            target_columns=("tenant_id", "id"),
            definition="",
        ),
    ),
    indexes=(
        Index(table="p", name="p_pkey", keys=("tenant_id", "id"), tail="", of_constraint=True),
        Index(table="p", name="p_code_idx", keys=("tenant_id", "code"), tail=""),
    ),
)


def _steps(sql: str) -> list[str]:
    (statement,) = parse_migration(Migration(number=1, name="a", sql=sql))
    return [step.text for step in scoped_steps(statement, SNAPSHOT)]


def _unforced(*tables: str, step: str) -> list[str]:
    return [
        *(f'ALTER TABLE "{table}" NO FORCE ROW LEVEL SECURITY' for table in tables),
        step,
        *(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY' for table in tables),
    ]


def test_a_new_table_has_its_column_and_composite_keys_from_the_start():
    assert _steps(
        "create table c (id int primary key, a int not null default 3 unique check (a > 0), "
        "p_id int references p on delete cascade deferrable initially deferred, "
        "constraint u unique (a, p_id), foreign key (a) references p (code))"
    ) == [
        "CREATE TABLE c (id int, a int NOT NULL DEFAULT 3 CHECK (a > 0), p_id int, "
        "CONSTRAINT u UNIQUE (tenant_id, a, p_id), "
        "CONSTRAINT c_a_fkey FOREIGN KEY (tenant_id, a) REFERENCES p (tenant_id, code), "
        "CONSTRAINT c_pkey PRIMARY KEY (tenant_id, id), "
        "CONSTRAINT c_a_key UNIQUE (tenant_id, a), "
        "CONSTRAINT c_p_id_fkey FOREIGN KEY (tenant_id, p_id) REFERENCES p "
        "ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, "
        "tenant_id bigint NOT NULL DEFAULT tenancy.bound_tenant())"
    ]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("on delete set null", "ON DELETE SET NULL (p_id)"),
        ("on delete set default", "ON DELETE SET DEFAULT (p_id)"),
        ("on delete set null (p_id)", "ON DELETE SET NULL (p_id)"),
        ("match full on update cascade", "ON UPDATE CASCADE"),
        ("not valid", "NOT VALID"),
    ],
)
def test_the_tenant_stays_when_a_foreign_key_acts(action, expected):
    steps = _steps(f"alter table q add constraint k foreign key (p_id) references p (id) {action}")

    assert steps == _unforced(
        "q",
        "p",
        step="ALTER TABLE q ADD CONSTRAINT k FOREIGN KEY (tenant_id, p_id) "
        f"REFERENCES p (tenant_id, id) {expected}",
    )


def test_keys_of_an_added_column_become_those_of_the_table():
    assert _steps("alter table q add column w int unique deferrable references p") == _unforced(
        "q",
        "p",
        step="ALTER TABLE q ADD COLUMN w int, "
        "ADD CONSTRAINT q_w_key UNIQUE (tenant_id, w) DEFERRABLE, "
        "ADD CONSTRAINT q_w_fkey FOREIGN KEY (tenant_id, w) REFERENCES p",
    )


def test_an_added_key_gets_a_name_that_is_free():
    assert _steps("alter table q add foreign key (p_id) references p")[2].startswith(
        "ALTER TABLE q ADD CONSTRAINT q_p_id_fkey1 FOREIGN KEY"
    )
    assert _steps("alter table p drop constraint p_pkey, add primary key (code)") == [
        "ALTER TABLE p DROP CONSTRAINT p_pkey, ADD CONSTRAINT p_pkey PRIMARY KEY (tenant_id, code)"
    ]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "create unique index on p (lower(code) desc) include (late) where late > 'a'",
            "CREATE UNIQUE INDEX p_lower_late_idx ON p USING btree (tenant_id, lower(code) DESC) "
            "INCLUDE (late) WHERE late > 'a'",
        ),
        (
            "create index on p (code)",
            "CREATE INDEX p_code_idx1 ON p USING btree (tenant_id, code)",
        ),
        (
            "create index if not exists i on p (code)",
            "CREATE INDEX IF NOT EXISTS i ON p USING btree (tenant_id, code)",
        ),
        (
            "alter table p add unique nulls not distinct (code) include (late)",
            "ALTER TABLE p ADD CONSTRAINT p_code_late_key UNIQUE NULLS NOT DISTINCT "
            "(tenant_id, code) INCLUDE (late)",
        ),
        (
            "create view v as select * from p",
            "CREATE VIEW v AS SELECT p.id, p.code, p.late FROM p",
        ),
        (
            "insert into p values (1, 'a', 'b') on conflict (id) do nothing",
            "INSERT INTO p (id, code, late) VALUES (1, 'a', 'b') "
            "ON CONFLICT (tenant_id, id) DO NOTHING",
        ),
        (
            "create function f(a text) returns bigint language sql as "
            "$$ insert into p values (a, a, a); select count(*) from (select * from p) as x $$",
            "CREATE FUNCTION f(a text) RETURNS bigint LANGUAGE sql AS $$INSERT INTO p "
            "(id, code, late) VALUES (a, a, a); "
            "SELECT count(*) FROM (SELECT p.id, p.code, p.late FROM p) x$$",
        ),
        (
            "create function f() returns bigint language sql begin atomic "
            "insert into p values ('a', 'a', 'a'); select 1; end",
            "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC "
            "INSERT INTO p (id, code, late) VALUES ('a', 'a', 'a'); SELECT 1; END",
        ),
    ],
)
def test_what_would_notice_the_hidden_column_is_changed(sql, expected):
    assert _steps(sql) == [expected]


@pytest.mark.parametrize(
    "sql",
    [
        "create table p (id int primary key)",
        "create table if not exists p (id int primary key references q)",
        "alter table missing add primary key (id)",
        "alter table if exists missing add column a int unique",
        "alter table p add column if not exists code text unique",
        "alter table p add column z int, drop column late, add check (z > 0)",
        "alter table p add constraint k primary key using index i",
        "create index on p using gin (code)",
        "create index on missing (a)",
        "create view v as select id from p",
        "update p set late = (select count(*)::text from q)",
        "alter table p rename to r",
        "create function f() returns int language plpgsql as $$ begin return 1; end $$",
        "create function f() returns int language sql as $$ select 1 $$",
        "drop table p",
    ],
)
def test_everything_else_is_the_users_own_text(sql):
    assert _steps(sql) == [sql]


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("alter table q validate constraint q_p_id_fkey", ("q", "p")),
        ("alter table p alter column id type bigint", ("p", "q")),
    ],
)
def test_row_security_is_lifted_while_postgresql_checks_a_foreign_key(sql, tables):
    assert _steps(sql) == _unforced(*tables, step=sql)


def test_what_cannot_be_rewritten_without_a_doubt_is_refused():
    sql = "insert into p select * from json_populate_recordset(null::record, '[]') as x"

    with pytest.raises(SchemaRefusedError, match="column"):
        _steps(sql)


def test_a_script_survives_its_way_through_the_catalog():
    (statement,) = parse_migration(
        Migration(number=1, name="a", sql="\nalter table q add foreign key (p_id) references p")
    )
    script = Script(steps=scoped_steps(statement, SNAPSHOT))

    assert Script.from_json(script.to_json()) == script
    assert {step.line for step in script.steps} == {2}


def test_a_new_namespace_needs_the_definitions_alone():
    statements = parse_migration(
        Migration(
            number=1,
            name="a",
            sql="alter table q add foreign key (p_id) references p -- c\n"
            "; delete from q; drop table q",
        )
    )
    script = Script(
        steps=tuple(step for item in statements for step in scoped_steps(item, SNAPSHOT))
    )

    assert script.definitions() == (
        "ALTER TABLE q ADD CONSTRAINT q_p_id_fkey1 FOREIGN KEY (tenant_id, p_id) REFERENCES p\n;\n"
        "drop table q\n;\n"
    )
    assert [(data, len(steps)) for data, steps in script.groups()] == [
        (False, 5),
        (True, 1),
        (False, 1),
    ]
    assert [step.sort for step in script.steps][:3] == [
        StepSort.PROTECTION,
        StepSort.PROTECTION,
        StepSort.DEFINITION,
    ]
