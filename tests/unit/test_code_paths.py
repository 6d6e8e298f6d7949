"""Which tables can run functions of the schema."""

from __future__ import annotations

from tenancy.data_isolation.engine.code_paths import relations_that_run_code
from tenancy.data_isolation.engine.schema_snapshot import (
    ColumnShape,
    Constraint,
    Index,
    Relation,
    Routine,
    SchemaSnapshot,
    SchemaType,
    Trigger,
)


def table(name: str, **column: str) -> Relation:
    return Relation(name=name, columns=(ColumnShape(name="c", **{"type": "integer"} | column),))


def test_a_schema_without_functions_runs_none():
    snapshot = SchemaSnapshot(
        schema="s",
        relations=(
            table("plain", default="nextval('seq'::regclass)"),
            Relation(name="seen", kind="v", definition="SELECT plain.c FROM plain"),
        ),
        constraints=(Constraint(table="plain", name="x", type="c", definition="CHECK (c > 0)"),),
    )

    assert relations_that_run_code(snapshot) == frozenset()


def test_every_way_to_a_function_counts():
    snapshot = SchemaSnapshot(
        schema="s",
        relations=(
            table("quiet"),
            table("by_default", default="compute(1)"),
            table("by_setting", default="set_config('a', 'b', false)"),
            table("by_check"),
            table("by_index"),
            table("by_trigger"),
            table("by_type", type="odd_domain"),
            table("reached"),
            table("reached_twice"),
            Relation(name="by_rule", rules=("r",)),
            Relation(name="view_of_quiet", kind="v", definition="SELECT c FROM quiet"),
            Relation(name="view_by_call", kind="v", definition="SELECT compute(c) FROM quiet"),
            Relation(name="view_of_view", kind="v", definition="SELECT * FROM view_by_call"),
        ),
        constraints=(
            Constraint(table="by_check", name="x", type="c", definition="CHECK (compute(c))"),
            Constraint(
                table="by_trigger",
                name="f",
                type="f",
                definition="",
                target="reached",
                on_delete="c",
            ),
            Constraint(
                table="reached",
                name="g",
                type="f",
                definition="",
                target="reached_twice",
                on_update="n",
            ),
            Constraint(
                table="by_trigger",
                name="h",
                type="f",
                definition="",
                target="quiet",
                on_delete="r",
            ),
        ),
        indexes=(Index(table="by_index", name="i", keys=(None,), tail="(compute(c))"),),
        triggers=(Trigger(table="by_trigger", name="t", definition=""),),
        routines=(Routine(name="compute"),),
        types=(SchemaType(name="odd_domain", kind="d", definition="CHECK (compute(VALUE))"),),
    )

    everything = {relation.name for relation in snapshot.relations}
    assert relations_that_run_code(snapshot) == everything - {"quiet", "view_of_quiet"}
