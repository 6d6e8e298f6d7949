"""What changed since the last look: told until it is accepted, and hard to forge."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tenancy.data_isolation.core.crypto import parse_master_key
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.drift import (
    DriftFile,
    Fingerprint,
    Record,
    Trait,
    compared,
    completed,
    drift_findings,
)

_KEY = parse_master_key("ab" * 32)
_SERVER = ServerName("main")
_T1, _T2 = "t_" + "1" * 20, "t_" + "2" * 20


def trait(value: str, database: str = "", space: str = "") -> Trait:
    return Trait(value=value, database=database, space=space)


def print_of(
    traits: dict[str, Trait], *, at: str = "noon", tenants: tuple[str, ...] = (), version: int = 1
) -> Fingerprint:
    return Fingerprint(
        traits=traits,
        versions={"db/app": version},
        tenants=frozenset(tenants),
        taken_at=at,
    )


_BEFORE = {
    "role a": trait("login"),
    "role b": trait("login"),
    "db: policy p on app.x": trait("mine", "db", "app"),
    f"role {_T1}": trait("login"),
    f"db: table {_T1}.x": trait("forced", "db", _T1),
}
_RECORD = Record(accepted=print_of(_BEFORE, tenants=(_T1,)), looked_at="dawn")


def test_nothing_is_told_when_nothing_changed():
    record, changes = compared(_RECORD, print_of(dict(_BEFORE), at="noon", tenants=(_T1,)))

    assert changes == []
    assert record.looked_at == "noon"


def test_the_schema_on_which_migrations_are_tried_comes_and_changes_with_them():
    trial = {
        "db: schema tenancy_trial": trait("tenancy_owner", "db", "tenancy_trial"),
        "db: table tenancy_trial.x": trait("forced", "db", "tenancy_trial"),
    }
    migrated = print_of(_BEFORE | trial, tenants=(_T1,), version=2)
    assert compared(_RECORD, migrated)[1] == []
    # Without a migration nobody of ours has made it.
    _, changes = compared(_RECORD, print_of(_BEFORE | trial, tenants=(_T1,)))
    assert [change.key for change in changes] == list(trial)


def test_what_was_added_changed_and_removed_is_told_with_when_it_was_last_seen():
    now = dict(_BEFORE) | {"role a": trait("login superuser"), "role c": trait("login")}
    del now["role b"]

    record, changes = compared(_RECORD, print_of(now, at="noon", tenants=(_T1,)))

    assert {change.key: change.problem for change in changes} == {
        "role a": "was changed since dawn: it was 'login', and is 'login superuser'",
        "role b": "was removed since dawn: it was 'login'",
        "role c": "was added since dawn: 'login'",
    }
    later, again = compared(record, print_of(now, at="dusk", tenants=(_T1,)))
    assert again == changes
    assert later.looked_at == "dusk"
    findings = list(drift_findings("main", again))
    assert all("tenancy doctor --accept" in finding.advice for finding in findings)


def test_what_changes_back_is_told_no_more():
    changed = dict(_BEFORE) | {"role a": trait("login superuser")}
    record, changes = compared(_RECORD, print_of(changed, tenants=(_T1,)))
    assert len(changes) == 1

    record, changes = compared(record, print_of(dict(_BEFORE), tenants=(_T1,)))

    assert changes == []
    assert record.last_seen == {}


def test_tenants_come_and_go_without_a_word():
    now = {key: item for key, item in _BEFORE.items() if _T1 not in key}
    now |= {f"role {_T2}": trait("login"), f"db: table {_T2}.x": trait("forced", "db", _T2)}

    record, changes = compared(_RECORD, print_of(now, tenants=(_T2,)))

    assert changes == []
    assert compared(record, print_of(now, tenants=(_T2,)))[1] == []


@pytest.mark.parametrize(
    ("key", "item", "is_own"),
    [
        (f"membership {_T2} in tenancy_hybrid", trait("admin f"), True),
        (f"settings of {_T2} in all databases", trait("temp_file_limit"), True),
        (f"membership {_T2} in pg_read_all_data", trait("admin f"), False),
        (f"membership visitor in {_T2}", trait("admin f"), False),
        (f"settings of {_T2} in db", trait("row_security=off"), False),
        (f"db: function public.{_T2}()", trait("postgres", "db", "public"), False),
        (f"db: extension {_T2}", trait("1", "db"), False),
        (f"access rule host all {_T2} trust", trait("1"), False),
    ],
)
def test_the_name_of_a_new_tenant_does_not_hide_what_is_not_its_own(
    key: str, item: Trait, is_own: bool
):
    now = dict(_BEFORE) | {f"role {_T2}": trait("login"), key: item}

    _, changes = compared(_RECORD, print_of(now, tenants=(_T1, _T2)))

    assert [change.key for change in changes] == ([] if is_own else [key])


def test_each_server_has_a_file_of_its_own(tmp_path: Path):
    names = ("a.b", "a_b", "a-b", "A_b")
    assert len({DriftFile(tmp_path, ServerName(name), _KEY).path for name in names}) == len(names)


def test_a_role_that_only_looks_like_a_tenants_is_told():
    now = dict(_BEFORE) | {f"role {_T2}": trait("login superuser")}

    _, changes = compared(_RECORD, print_of(now, tenants=(_T1,)))

    assert [change.key for change in changes] == [f"role {_T2}"]


def test_a_tenant_that_is_there_is_not_changed_without_a_word():
    now = dict(_BEFORE) | {f"role {_T1}": trait("login bypassrls")}

    _, changes = compared(_RECORD, print_of(now, tenants=(_T1,)))

    assert [change.key for change in changes] == [f"role {_T1}"]


def test_a_migration_changes_the_schema_it_moved_and_no_other():
    now = dict(_BEFORE) | {
        "db: policy p on app.x": trait("other", "db", "app"),
        f"db: table {_T1}.x": trait("open", "db", _T1),
    }

    _, changes = compared(_RECORD, print_of(now, tenants=(_T1,), version=2))

    assert [change.key for change in changes] == [f"db: table {_T1}.x"]


_DUE = frozenset({"connections 8", "temp_file_limit=64kB"})


@pytest.mark.parametrize(
    ("before", "now", "is_own"),
    [
        ("login connections 4", "login connections 8", True),
        ("login connections 4", "login connections 7", False),
        ("login connections 4", "login bypassrls connections 8", False),
        (
            "login connections 4 {temp_file_limit=9kB}",
            "login connections 8 {temp_file_limit=64kB}",
            True,
        ),
        ("login connections 8", "login connections 8 {temp_file_limit=64kB}", True),
        ("login connections 8", "login connections 8 {temp_file_limit=65kB}", False),
        ("login connections 8 {temp_file_limit=64kB}", "login connections 8", False),
        ("login connections 8 {temp_file_limit=64kB}", "login connections -1", False),
        (
            "login connections 4 {temp_file_limit=9kB}",
            "login connections 8 {temp_file_limit=64kB,row_security=off}",
            False,
        ),
        (
            "login connections 4 {row_security=off}",
            "login connections 8 {temp_file_limit=64kB,row_security=off}",
            True,
        ),
    ],
)
def test_limits_that_are_now_as_the_settings_have_them_are_no_drift(
    before: str, now: str, is_own: bool
):
    traits = {f"role {_T1}": trait(before), f"role {_T2}": trait(before)}
    record = Record(accepted=print_of(traits, tenants=(_T1, _T2)), looked_at="dawn")
    changed = dict.fromkeys(traits, trait(now))
    fresh = dataclasses.replace(print_of(changed, tenants=(_T1, _T2)), limits={_T1: _DUE})

    kept, changes = compared(record, fresh)

    # A login of which no settings are known has no limits by them.
    assert [change.key for change in changes] == [f"role {_T1}"] * (not is_own) + [f"role {_T2}"]
    # What is accepted so is what the next change is held against.
    _, back = compared(kept, dataclasses.replace(record.accepted, limits={_T1: _DUE}))
    assert (f"role {_T1}" in {change.key for change in back}) is is_own


def test_the_first_limit_of_a_login_is_no_drift_and_other_settings_are():
    name = "settings of tenancy_rows in all databases"
    for value, told in (("{temp_file_limit=64kB}", []), ("{row_security=off}", [name])):
        now = dataclasses.replace(
            print_of(dict(_BEFORE) | {name: trait(value)}, tenants=(_T1,)),
            limits={"tenancy_rows": _DUE},
        )
        assert [change.key for change in compared(_RECORD, now)[1]] == told


def test_what_nobody_could_see_is_not_gone():
    now = {key: item for key, item in _BEFORE.items() if item.database != "db"}
    unseen = replace(print_of(now, tenants=(_T1,)), versions={}, unseen=frozenset({"db"}))

    record, changes = compared(_RECORD, unseen)

    assert changes == []
    assert completed(unseen, _RECORD.accepted).traits == _BEFORE
    # Once it is seen again, what has changed in between is told.
    later = dict(_BEFORE) | {"db: policy p on app.x": trait("theirs", "db", "app")}
    _, changes = compared(record, print_of(later, tenants=(_T1,)))
    assert [change.key for change in changes] == ["db: policy p on app.x"]


def test_the_next_version_of_the_runtimes_own_schema_is_no_drift():
    own = {"db: table tenancy.fence": trait("tenancy_owner", "db", "tenancy")}
    new = {"db: table tenancy.fence": trait("tenancy_keeper", "db", "tenancy")}
    before = replace(print_of(own), versions={"db/app": 1, "db/tenancy": 2})
    record = Record(accepted=before, looked_at="dawn")

    after = replace(print_of(new), versions={"db/app": 1, "db/tenancy": 4})
    kept, changes = compared(record, after)
    assert changes == []
    assert kept.accepted.traits == new

    _, changes = compared(record, replace(after, versions=before.versions))
    assert len(changes) == 1


def test_a_record_is_kept_and_comes_back(tmp_path: Path):
    file = DriftFile(tmp_path, _SERVER, _KEY)
    assert file.read() is None

    file.write(_RECORD)

    assert file.read() == _RECORD
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_somebody_changed_is_not_believed(tmp_path: Path):
    file = DriftFile(tmp_path, _SERVER, _KEY)
    file.write(_RECORD)
    sound = json.loads(file.path.read_text())
    other = DriftFile(tmp_path, _SERVER, parse_master_key("cd" * 32))
    changed = sound | {"body": "A" + sound["body"][1:-4] + "AAAA"}
    for text in ("", "{}", "[]", json.dumps(changed), json.dumps(sound | {"seal": "0" * 64})):
        file.path.write_text(text)
        with pytest.raises(SetupError, match="was not written by this installation"):
            file.read()
    file.path.write_text(json.dumps(sound))
    assert file.read() == _RECORD
    with pytest.raises(SetupError):
        other.read()


_MOVE = "m_" + "3" * 20
_OF_THE_MOVE = {
    f"db: schema {_MOVE}": trait("tenancy_owner", "db", _MOVE),
    f"db: trigger tenancy_{_MOVE}_insert on app.x": trait("O", "db", "app"),
    f"db: table {_T2}.x": trait("forced", "db", _T2),
    f"role {_T2}": trait("login"),
}


def test_what_a_move_makes_and_takes_away_is_no_drift_while_it_is_under_way():
    without = print_of(dict(_BEFORE), tenants=(_T1,))
    during = replace(
        print_of(_BEFORE | _OF_THE_MOVE, tenants=(_T1,)), moving=frozenset({_MOVE, _T2})
    )

    assert len(compared(_RECORD, replace(during, moving=frozenset()))[1]) == len(_OF_THE_MOVE)
    record, changes = compared(_RECORD, during)
    assert changes == []
    assert compared(record, replace(without, moving=during.moving))[1] == []


def test_a_change_of_what_a_move_has_made_is_told():
    during = replace(
        print_of(_BEFORE | _OF_THE_MOVE, tenants=(_T1,)), moving=frozenset({_MOVE, _T2})
    )
    record, _ = compared(_RECORD, during)
    changed = {key: replace(item, value="other") for key, item in _OF_THE_MOVE.items()}

    _, changes = compared(record, replace(during, traits=_BEFORE | changed))

    assert {change.key for change in changes} == set(_OF_THE_MOVE)
