"""From a snapshot of the catalogs to what is missing: no database involved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tenancy.data_isolation.engine.schema_snapshot import (
    ColumnShape,
    Constraint,
    Grant,
    Index,
    Policy,
    Relation,
    Routine,
    SchemaSnapshot,
    SchemaType,
    Trigger,
    parse_snapshot,
)
from tenancy.data_isolation.engine.scope_plan import plan_scope

_SHOWN = "(tenant_id = ( SELECT tenancy.tenant() AS tenant))"
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OPEN = (Grant(role="t_1", privilege="USAGE"),)


def _grants(*privileges: str, role: str = "t_1") -> tuple[Grant, ...]:
    return tuple(Grant(role=role, privilege=name) for name in privileges)


def _plain(name: str = "t", **changes: Any) -> SchemaSnapshot:
    """A table with a primary key, as its author made it."""
    table = Relation(name=name, columns=(ColumnShape(name="id", type="integer", not_null=True),))
    key = Constraint(
        table=name, name=f"{name}_pkey", type="p", columns=("id",), definition="PRIMARY KEY (id)"
    )
    return replace(
        SchemaSnapshot(schema="app", grants=_OPEN, relations=(table,), constraints=(key,)),
        **changes,
    )


def _scoped(**changes: Any) -> SchemaSnapshot:
    """The same table, scoped."""
    tenant = ColumnShape(
        name="tenant_id", type="bigint", not_null=True, default="tenancy.bound_tenant()"
    )
    table = Relation(
        name="t",
        row_security=True,
        forced=True,
        columns=(ColumnShape(name="id", type="integer", not_null=True), tenant),
        grants=_grants(*_RIGHTS),
    )
    key = Constraint(
        table="t",
        name="t_pkey",
        type="p",
        columns=("tenant_id", "id"),
        definition="PRIMARY KEY (tenant_id, id)",
    )
    policy = Policy(table="t", name="tenancy_isolation", using=_SHOWN, check=_SHOWN)
    return replace(
        SchemaSnapshot(
            schema="app",
            grants=_OPEN,
            relations=(table,),
            constraints=(key,),
            policies=(policy,),
        ),
        **changes,
    )


def _with_table(snapshot: SchemaSnapshot, **changes: Any) -> SchemaSnapshot:
    return replace(snapshot, relations=(replace(snapshot.relations[0], **changes),))


def _reasons(snapshot: SchemaSnapshot) -> list[str]:
    return [str(refusal) for refusal in plan_scope(snapshot).refusals]


def test_a_plain_table_gets_its_column_its_key_row_security_and_rights():
    plan = plan_scope(_plain())

    assert plan.refusals == ()
    assert plan.changes == (
        'ALTER TABLE "t" ADD COLUMN "tenant_id" bigint NOT NULL, '
        'ALTER COLUMN "tenant_id" SET DEFAULT tenancy.bound_tenant(), '
        'DROP CONSTRAINT "t_pkey", ADD CONSTRAINT "t_pkey" PRIMARY KEY ("tenant_id", id), '
        "ENABLE ROW LEVEL SECURITY",
        'CREATE POLICY tenancy_isolation ON "t" FOR ALL TO PUBLIC '
        "USING (tenant_id = (SELECT tenancy.tenant())) "
        "WITH CHECK (tenant_id = (SELECT tenancy.tenant()))",
    )
    assert plan.protection == (
        'ALTER TABLE "t" FORCE ROW LEVEL SECURITY',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE "t" TO "t_1"',
    )


def test_a_scoped_table_needs_nothing():
    plan = plan_scope(_scoped())

    assert (plan.statements, plan.refusals) == ((), ())


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("UNIQUE (a)", 'UNIQUE ("tenant_id", a)'),
        ("UNIQUE NULLS NOT DISTINCT (a)", 'UNIQUE NULLS NOT DISTINCT ("tenant_id", a)'),
        ('UNIQUE ("A)") INCLUDE (b)', 'UNIQUE ("tenant_id", "A)") INCLUDE (b)'),
        (
            "UNIQUE (a) DEFERRABLE INITIALLY DEFERRED",
            'UNIQUE ("tenant_id", a) DEFERRABLE INITIALLY DEFERRED',
        ),
    ],
)
def test_a_unique_constraint_keeps_everything_and_gets_the_tenant_in_front(definition, expected):
    unique = Constraint(table="t", name="t_a_key", type="u", columns=("a",), definition=definition)
    snapshot = _scoped()
    plan = plan_scope(replace(snapshot, constraints=(*snapshot.constraints, unique)))

    assert plan.changes == (
        f'ALTER TABLE "t" DROP CONSTRAINT "t_a_key", ADD CONSTRAINT "t_a_key" {expected}',
    )


def _foreign_key(**changes: Any) -> Constraint:
    return replace(
        Constraint(
            table="t",
            name="t_a_fkey",
            type="f",
            columns=("a", "b"),
            target="t",
            target_columns=("id", "c"),
            definition="",
        ),
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "tail"),
    [
        ({}, ""),
        ({"on_delete": "c", "on_update": "r"}, " ON UPDATE RESTRICT ON DELETE CASCADE"),
        ({"on_delete": "n"}, ' ON DELETE SET NULL ("a", "b")'),
        ({"on_delete": "n", "delete_set": ("b",)}, ' ON DELETE SET NULL ("b")'),
        ({"on_delete": "d"}, ' ON DELETE SET DEFAULT ("a", "b")'),
        ({"deferrable": True}, " DEFERRABLE"),
        ({"deferrable": True, "deferred": True}, " DEFERRABLE INITIALLY DEFERRED"),
        ({"validated": False}, " NOT VALID"),
        ({"enforced": False, "validated": False}, " NOT ENFORCED"),
    ],
)
def test_a_foreign_key_keeps_its_name_and_what_it_does(changes, tail):
    snapshot = _scoped()
    key = _foreign_key(**changes)
    plan = plan_scope(replace(snapshot, constraints=(*snapshot.constraints, key)))

    assert plan.refusals == ()
    assert plan.changes == (
        'ALTER TABLE "t" DROP CONSTRAINT "t_a_fkey"',
        'ALTER TABLE "t" NO FORCE ROW LEVEL SECURITY',
        'ALTER TABLE "t" ADD CONSTRAINT "t_a_fkey" FOREIGN KEY ("tenant_id", "a", "b") '
        f'REFERENCES "t" ("tenant_id", "id", "c"){tail}',
    )
    assert plan.protection == ('ALTER TABLE "t" FORCE ROW LEVEL SECURITY',)


def test_a_foreign_key_of_one_column_that_was_match_full_becomes_a_simple_one():
    snapshot = _scoped()
    key = _foreign_key(columns=("a",), target_columns=("id",), match="f")
    plan = plan_scope(replace(snapshot, constraints=(*snapshot.constraints, key)))

    assert plan.refusals == ()
    assert "MATCH" not in plan.changes[-1]


def test_foreign_keys_are_dropped_before_the_keys_they_refer_to_change():
    snapshot = _plain()
    plan = plan_scope(replace(snapshot, constraints=(*snapshot.constraints, _foreign_key())))
    drop, table, _policy, add = plan.changes

    assert drop == 'ALTER TABLE "t" DROP CONSTRAINT "t_a_fkey"'
    assert 'ADD CONSTRAINT "t_pkey"' in table
    assert 'ADD CONSTRAINT "t_a_fkey"' in add


def test_a_btree_index_is_made_again_with_the_tenant_in_front():
    index = Index(
        table="t",
        name='we"ird',
        keys=(None, "a"),
        tail="lower(a) text_pattern_ops, a DESC) INCLUDE (b) WHERE (a > 0)",
        unique=True,
    )

    assert plan_scope(_scoped(indexes=(index,))).changes == (
        'DROP INDEX "we""ird"',
        'CREATE UNIQUE INDEX "we""ird" ON "t" USING btree ("tenant_id", lower(a) '
        "text_pattern_ops, a DESC) INCLUDE (b) WHERE (a > 0)",
    )


@pytest.mark.parametrize("method", ["gin", "gist", "brin", "hash", "spgist"])
def test_an_index_of_another_method_stays_as_it_is(method):
    index = Index(table="t", name="i", keys=("a",), tail="a)", method=method)

    assert plan_scope(_scoped(indexes=(index,))).statements == ()


def test_the_index_of_a_constraint_is_the_constraints_business():
    index = Index(table="t", name="t_pkey", keys=("id",), tail="id)", of_constraint=True)

    assert plan_scope(_scoped(indexes=(index,))).statements == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"using": "true"},
        {"check": None},
        {"command": "r"},
        {"permissive": False},
        {"roles": ("t_1",)},
    ],
)
def test_a_policy_of_ours_that_says_something_else_is_replaced(changes):
    snapshot = _scoped()
    plan = plan_scope(replace(snapshot, policies=(replace(snapshot.policies[0], **changes),)))

    assert plan.changes[0] == 'DROP POLICY tenancy_isolation ON "t"'
    assert plan.changes[1].startswith('CREATE POLICY tenancy_isolation ON "t" FOR ALL TO PUBLIC')


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"row_security": False}, 'ALTER TABLE "t" ENABLE ROW LEVEL SECURITY'),
        ({"forced": False}, 'ALTER TABLE "t" FORCE ROW LEVEL SECURITY'),
    ],
)
def test_row_security_that_was_switched_off_comes_back(changes, expected):
    assert plan_scope(_with_table(_scoped(), **changes)).statements == (expected,)


def test_the_tenants_column_is_mended():
    columns = (ColumnShape(name="tenant_id", type="bigint", default="1"),)

    assert plan_scope(_with_table(_scoped(), columns=columns)).changes == (
        'ALTER TABLE "t" ALTER COLUMN "tenant_id" SET NOT NULL, '
        'ALTER COLUMN "tenant_id" SET DEFAULT tenancy.bound_tenant()',
    )


def test_views_run_with_the_rights_of_whoever_asks():
    view = Relation(
        name="v", kind="v", grants=_grants(*_RIGHTS), options=("security_barrier=true",)
    )
    safe = replace(view, name="w", options=("security_invoker=true",))

    assert plan_scope(SchemaSnapshot(schema="app", relations=(view, safe))).changes == (
        'ALTER VIEW "v" SET (security_invoker = true)',
    )


def test_rights_are_exactly_those_of_the_namespaces_role():
    sequence = Relation(name="s", kind="S", grants=_grants("USAGE", "UPDATE"))
    function = Routine(name="f", arguments="a integer", grants=_grants("EXECUTE", role="PUBLIC"))
    table = replace(
        _scoped().relations[0],
        grants=(*_grants(*_RIGHTS), *_grants("SELECT", role="t_2")),
        column_grants=("t_1",),
    )
    plan = plan_scope(_scoped(relations=(table, sequence), routines=(function,)))

    assert plan.changes == ()
    assert plan.protection == (
        'REVOKE ALL ON TABLE "t" FROM "t_1"',
        'REVOKE ALL ON TABLE "t" FROM "t_2"',
        'REVOKE ALL ON SEQUENCE "s" FROM "t_1"',
        'REVOKE ALL ON FUNCTION "f"(a integer) FROM PUBLIC',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE "t" TO "t_1"',
        'GRANT USAGE ON SEQUENCE "s" TO "t_1"',
        'GRANT EXECUTE ON FUNCTION "f"(a integer) TO "t_1"',
    )


def test_a_right_with_grant_option_is_taken_away():
    grants = (*_grants("INSERT", "UPDATE", "DELETE"),)
    loose = Grant(role="t_1", privilege="SELECT", grantable=True)
    plan = plan_scope(_with_table(_scoped(), grants=(*grants, loose)))

    assert plan.protection[0] == 'REVOKE ALL ON TABLE "t" FROM "t_1"'


def test_other_roles_lose_the_schema_when_the_role_is_given():
    plan = plan_scope(_scoped(grants=_grants("USAGE", "CREATE", role="t_2")), roles=("t_1",))

    assert plan.protection == (
        'REVOKE ALL ON SCHEMA "app" FROM "t_2"',
        'GRANT USAGE ON SCHEMA "app" TO "t_1"',
    )


def test_nobody_has_rights_in_a_reference_and_its_owner_sees_its_rows():
    snapshot = replace(_scoped(), schema="tenancy_reference")

    assert plan_scope(snapshot, roles=()).protection == (
        'ALTER TABLE "t" NO FORCE ROW LEVEL SECURITY',
        'REVOKE ALL ON SCHEMA "tenancy_reference" FROM "t_1"',
        'REVOKE ALL ON TABLE "t" FROM "t_1"',
    )


def test_the_runtimes_table_of_versions_belongs_to_no_tenant():
    table = Relation(
        name="tenancy_schema_version", row_security=True, forced=True, grants=_grants("SELECT")
    )
    key = replace(_plain().constraints[0], table=table.name)
    policy = Policy(table=table.name, name=table.name, using="true", check="true")
    plan = plan_scope(
        SchemaSnapshot(
            schema="app",
            grants=_OPEN,
            relations=(table,),
            constraints=(key,),
            policies=(policy,),
        )
    )

    assert plan.refusals == ()
    assert plan.statements == ('REVOKE ALL ON TABLE "tenancy_schema_version" FROM "t_1"',)


@pytest.mark.parametrize(
    ("relation", "reason"),
    [
        (Relation(name="m", kind="m"), "materialized view m: it would hold the rows of all"),
        (Relation(name="p", kind="p"), "partitioned table p: its partitions"),
        (Relation(name="f", kind="f"), "foreign table f: row security does not reach"),
        (Relation(name="t"), "table t: it has no primary key"),
        (Relation(name="v", kind="v", owner="joe"), "view v: its owner is joe"),
        (Relation(name="s", kind="S", persistence="u"), "sequence s: it would be empty"),
        (Relation(name="v", kind="v", rules=("r",)), "view v: its rules (r)"),
        (
            Relation(name="v", kind="v", columns=(ColumnShape(name="tenant_id", type="bigint"),)),
            "view v: it has a column tenant_id",
        ),
        (
            Relation(name="c", kind="c", columns=(ColumnShape(name="tenant_id", type="text"),)),
            "composite type c: it has a column tenant_id",
        ),
        (
            Relation(name="c", kind="c", columns=(ColumnShape(name="a", type="regclass[]"),)),
            "composite type c: its column a is regclass",
        ),
    ],
)
def test_relations_that_cannot_be_kept_apart_are_refused(relation, reason):
    assert any(
        found.startswith(reason)
        for found in _reasons(SchemaSnapshot(schema="app", relations=(relation,)))
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partition": True}, "it is a partition"),
        ({"inherits": True}, "inherits"),
        ({"typed": True}, "made of a type"),
        ({"rules": ("r",)}, "use triggers"),
        ({"columns": (ColumnShape(name="tenant_id", type="integer"),)}, "is integer, not bigint"),
        (
            {"columns": (ColumnShape(name="tenant_id", type="bigint", generated="s"),)},
            "is generated",
        ),
        (
            {"columns": (ColumnShape(name="tenant_id", type="bigint", identity="a"),)},
            "is generated",
        ),
        ({"columns": (ColumnShape(name="a", type="oid"),)}, "one database only"),
        ({"columns": (ColumnShape(name="a", type="u", row_of="u"),)}, "holds rows of table u"),
    ],
)
def test_tables_that_cannot_be_kept_apart_are_refused(changes, reason):
    (found,) = _reasons(_with_table(_scoped(), **changes))

    assert found.startswith("table t: ")
    assert reason in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": None}, "another schema"),
        ({"on_update": "n"}, "ON UPDATE SET NULL"),
        ({"on_update": "d"}, "ON UPDATE SET NULL or SET DEFAULT"),
        ({"match": "f"}, "MATCH FULL over several columns"),
        ({"period": True}, "periods"),
        ({"columns": ("tenant_id", "a")}, "not the first column on both sides"),
        ({"columns": ("a", "tenant_id")}, "not the first column on both sides"),
        (
            {
                "columns": ("tenant_id", "a"),
                "target_columns": ("tenant_id", "id"),
                "on_delete": "n",
            },
            "ON DELETE SET would change tenant_id",
        ),
        (
            {"columns": ("tenant_id", "a"), "target_columns": ("tenant_id", "id"), "match": "f"},
            "MATCH FULL cannot hold",
        ),
    ],
)
def test_foreign_keys_that_cannot_be_kept_apart_are_refused(changes, reason):
    snapshot = _scoped()
    (found,) = _reasons(
        replace(snapshot, constraints=(*snapshot.constraints, _foreign_key(**changes)))
    )

    assert found.startswith("constraint t_a_fkey of table t: ")
    assert reason in found


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint(table="t", name="x", type="x", definition=""), "exclusion"),
        (
            Constraint(
                table="t", name="u", type="u", columns=("a", "tenant_id"), definition="UNIQUE ("
            ),
            "not the first",
        ),
    ],
)
def test_other_constraints_that_cannot_be_kept_apart_are_refused(constraint, reason):
    snapshot = _scoped()
    (found,) = _reasons(replace(snapshot, constraints=(*snapshot.constraints, constraint)))

    assert reason in found


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (Index(table="t", name="i", keys=("a",), tail="a)", valid=False), "not valid"),
        (Index(table="t", name="i", keys=("a",), tail="a)", functions=("f", "g")), "calls f, g,"),
        (
            Index(
                table="t", name="i", keys=("a",), tail="a)", of_constraint=True, functions=("f",)
            ),
            "generated column",
        ),
        (Index(table="t", name="i", keys=("a", "tenant_id"), tail=""), "not the first"),
        (Index(table="t", name="i", keys=("a",), tail=None), "cannot be extended"),
        (
            Index(table="t", name="i", keys=("a",), tail="a)", method="own", unique=True),
            "cannot include the tenant",
        ),
    ],
)
def test_indexes_that_cannot_be_kept_apart_are_refused(index, reason):
    (found,) = _reasons(_scoped(indexes=(index,)))

    assert found.startswith("index i: ")
    assert reason in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "p"}, "procedure f(): only functions"),
        ({"kind": "a"}, "aggregate f(): only functions"),
        ({"owner": "joe"}, "function f(): its owner is joe"),
        ({"security_definer": True}, "function f(): SECURITY DEFINER"),
        ({"leakproof": True}, "function f(): a LEAKPROOF function"),
        ({"language": "c"}, "function f(): language c"),
        ({"settings": ("Role=x", "work_mem=1MB")}, "function f(): its SET clause changes role"),
        ({"row_types": ("t",)}, "function f(): it takes or returns rows of table t"),
    ],
)
def test_functions_that_could_leave_the_tenant_are_refused(changes, reason):
    (found,) = _reasons(
        SchemaSnapshot(schema="app", routines=(replace(Routine(name="f"), **changes),))
    )

    assert found.startswith(reason)


def test_harmless_settings_of_a_function_are_allowed():
    routine = Routine(name="f", settings=("work_mem=1MB", "TimeZone=UTC"))

    assert _reasons(SchemaSnapshot(schema="app", routines=(routine,))) == []


@pytest.mark.parametrize(
    ("kind", "allowed"), [("e", True), ("d", True), ("r", False), ("b", False)]
)
def test_enums_and_domains_are_the_types_that_are_allowed(kind, allowed):
    snapshot = SchemaSnapshot(schema="app", types=(SchemaType(name="x", kind=kind),))

    assert (_reasons(snapshot) == []) == allowed


def test_other_policies_references_to_other_schemas_and_strange_objects_are_refused():
    found = _reasons(
        _scoped(
            policies=(
                *_scoped().policies,
                Policy(table="t", name="open", using="true", check="true"),
            ),
            outside=(("view", "app.v", "public.t"),),
            strangers=(("operator", "###"),),
        )
    )

    assert found == [
        "policy open of table t: tenancy_isolation must be the only policy of a table",
        "view app.v: it refers to public.t in another schema",
        "operator ###: a tenant-neutral schema cannot hold this",
    ]


def test_a_table_that_is_refused_is_planned_for_all_the_same():
    plan = plan_scope(replace(_plain(), constraints=()))

    assert len(plan.refusals) == 1
    assert plan.changes[0].startswith('ALTER TABLE "t" ADD COLUMN "tenant_id"')


def test_a_document_of_the_catalogs_becomes_a_snapshot():
    document = {
        "schema": {"name": "app", "owner": "o", "grants": [["PUBLIC", "USAGE", False]]},
        "relations": [
            {
                "name": "t",
                "kind": "r",
                "owner": "o",
                "persistence": "p",
                "row_security": True,
                "forced": False,
                "partition": False,
                "typed": False,
                "inherits": False,
                "sensitive": True,
                "reads": [],
                "belongs_to": None,
                "options": ["fillfactor=50"],
                "rules": [],
                "definition": None,
                "grants": None,
                "column_grants": ["x"],
                "columns": [
                    {
                        "name": "a",
                        "type": "text",
                        "row_of": None,
                        "not_null": True,
                        "default": None,
                        "generated": "",
                        "identity": "",
                    }
                ],
            }
        ],
        "constraints": None,
        "indexes": [
            {
                "table": "t",
                "name": "i",
                "keys": [None, "a"],
                "tail": "x)",
                "method": "btree",
                "unique": False,
                "valid": True,
                "of_constraint": False,
                "functions": [],
            }
        ],
        "policies": None,
        "triggers": [{"table": "t", "name": "r", "definition": "d", "enabled": "O"}],
        "routines": None,
        "types": None,
        "outside": [["view", "v", "w"]],
        "strangers": None,
    }

    found = parse_snapshot(document)

    assert found == SchemaSnapshot(
        schema="app",
        owner="o",
        grants=(Grant(role="PUBLIC", privilege="USAGE"),),
        relations=(
            Relation(
                name="t",
                owner="o",
                row_security=True,
                sensitive=True,
                options=("fillfactor=50",),
                column_grants=("x",),
                columns=(ColumnShape(name="a", type="text", not_null=True),),
            ),
        ),
        indexes=(Index(table="t", name="i", keys=(None, "a"), tail="x)"),),
        triggers=(Trigger(table="t", name="r", definition="d"),),
        outside=(("view", "v", "w"),),
    )
