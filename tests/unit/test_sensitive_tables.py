"""Which tables are kept apart, and what a step of a migration means for them."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.engine.overlay_steps import OverlayStep
from tenancy.data_isolation.engine.schema_snapshot import (
    Constraint,
    Relation,
    Routine,
    SchemaSnapshot,
)
from tenancy.data_isolation.engine.sensitive_tables import (
    bound_functions,
    sensitive_tables,
    views_of,
)


def key(table: str, target: str) -> Constraint:
    return Constraint(table=table, name=f"{table}_{target}", type="f", definition="", target=target)


SCHEMA = SchemaSnapshot(
    schema="app",
    relations=(
        Relation(name="patients", sensitive=True),
        Relation(name="visits"),
        Relation(name="wards"),
        Relation(name="rooms"),
        Relation(name="prices"),
        Relation(name="top", kind="v", reads=("middle", "prices")),
        Relation(name="middle", kind="v", reads=("visits",)),
        Relation(name="offers", kind="v", reads=("prices",)),
    ),
    constraints=(key("visits", "patients"), key("visits", "wards"), key("rooms", "wards")),
    routines=(
        Routine(name="costs", reads=("prices",)),
        Routine(name="stays", arguments="n integer", reads=("top",)),
    ),
)


def test_foreign_keys_carry_the_mark_both_ways():
    assert sensitive_tables(SCHEMA) == {"patients", "visits", "wards", "rooms"}


def test_what_is_apart_already_counts_like_a_mark_if_it_is_there():
    assert sensitive_tables(SCHEMA, {"prices", "gone"}) == {
        *("patients", "visits", "wards", "rooms", "prices"),
    }
    assert sensitive_tables(SchemaSnapshot(schema="app")) == frozenset()


def test_views_follow_their_tables_those_they_are_made_of_first():
    assert views_of(SCHEMA, {"visits"}) == ("middle", "top")
    assert set(views_of(SCHEMA, {"prices"})) == {"top", "offers"}


def test_functions_that_are_bound_to_what_is_apart_are_named():
    assert list(bound_functions(SCHEMA)) == [("stays", "n integer", "top")]


OWN = {"patients", "patients_pkey", "patients_id_seq", "visited"}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("alter table patients add column x int", True),
        ("alter table rooms add column x int", False),
        ("alter table patients force row level security", True),
        ("create unique index on patients (tenant_id, x)", True),
        ("create index on rooms (x)", False),
        ("drop index patients_pkey", True),
        ("drop index rooms_pkey", False),
        ("alter index patients_pkey rename to p", True),
        ("alter sequence patients_id_seq restart", True),
        ("create sequence s owned by patients.id", True),
        ("create sequence s", False),
        ("create trigger t before insert on patients for each row execute function f()", True),
        ("drop trigger t on patients", True),
        ("drop trigger patients on rooms", False),
        ("alter trigger t on patients rename to u", True),
        ("create policy p on patients using (true)", True),
        ("drop policy p on rooms", False),
        ("alter table patients rename column a to b", True),
        ("alter view visited rename to seen", True),
        ("create view v as select * from patients", False),
        ("alter view visited alter column a set default 1", True),
        ("create table patients (id int)", False),
        ("create type mood as enum ('a')", False),
        ("alter type mood add value 'b'", False),
        ("create function f() returns int language sql as 'select 1'", False),
        ("comment on table patients is 'x'", False),
        ("drop type patients", False),
        ("drop function patients()", False),
    ],
)
def test_an_overlay_takes_part_in_what_changes_its_own(text, taken):
    assert OverlayStep(text).text_for(OWN) == (text if taken else None)


def test_a_drop_of_several_is_cut_to_what_is_there():
    step = OverlayStep("drop table rooms, patients, wards cascade")

    assert step.text_for(OWN) == "DROP TABLE patients CASCADE"
    assert step.text_for({"rooms", "patients", "wards"}) == (
        "drop table rooms, patients, wards cascade"
    )


@pytest.mark.parametrize(
    ("text", "joins"),
    [
        ("create table a (id int, b int references c)", True),
        ("create table a (id int)", False),
        ("alter table a add foreign key (b) references c", False),
        ("comment on table a is '@sensitive'", True),
        ("comment on column a.b is '@sensitive'", False),
        ("alter table a rename to b", False),
    ],
)
def test_new_tables_and_marks_may_join_tables(text, joins):
    assert OverlayStep(text).joins_tables is joins


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("alter table a add foreign key (b) references c", [{"a", "c"}]),
        (
            "alter table a add column b int references c, add c int references a",
            [{"a", "c"}, {"a"}],
        ),
        ("alter table a add check (b > 0)", []),
        ("create table a (id int, b int references c)", []),
    ],
)
def test_keys_between_tables_that_are_there_are_known_beforehand(text, pairs):
    step = OverlayStep(text)

    assert list(step.new_keys) == pairs
    assert sensitive_tables(SCHEMA, {"a"}, new_keys=step.new_keys) == sensitive_tables(SCHEMA)


def test_a_key_that_is_about_to_be_made_joins_like_one_that_is_there():
    step = OverlayStep("alter table prices add foreign key (patient) references patients")

    assert sensitive_tables(SCHEMA, new_keys=step.new_keys) == {
        *("patients", "visits", "wards", "rooms", "prices"),
    }


def test_what_else_is_asked_of_a_step():
    assert OverlayStep("create or replace view v as select 1").view == "v"
    assert OverlayStep("drop type a cascade").drops
    assert OverlayStep("alter sequence s owned by t.c").adopted_sequence == ("s", "t")
    assert OverlayStep("alter sequence s restart").adopted_sequence is None
    assert OverlayStep("create index on a (b)").view is None
