"""Each thing that can be wrong is broken for real, found, and mended by its remedy as told."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
from collections.abc import Sequence

import asyncpg
import pytest
from support.doctor_breaks import AREAS, Area, Break
from support.doctor_stage import Stage
from support.watching import tiers, watched

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.errors import UnsafeRoleError, UnsafeServerError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine import patch_level
from tenancy.data_isolation.engine.bootstrap import Bootstrap
from tenancy.data_isolation.engine.drift import DriftFile, Fingerprint, Record, compared
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.login_limits import login_connections_max, temp_file_limit
from tenancy.data_isolation.engine.mending import can_mend, mend
from tenancy.data_isolation.engine.patch_level import Fault, FaultKind


def seen(findings: list[Finding], fault: Break, stage: Stage) -> bool:
    words = fault.words
    for name, value in stage.names.items():
        words = words.replace(f"{{{name}}}", value)
    return any(
        finding.check == fault.check
        and words in f"{finding.subject} {finding.problem}"
        and finding.severity is fault.severity
        for finding in findings
    )


async def broken_and_mended(stage: Stage, faults: Sequence[Break]) -> None:
    """Break all, find each, run the remedies, find nothing."""
    for fault in faults:
        await stage.run(fault.statement.split(";;"), fault.database)
    findings = await stage.findings()
    missed = [fault.statement for fault in faults if not seen(findings, fault, stage)]
    assert missed == [], "\n".join(map(str, findings))
    assert all(finding.remedy for finding in findings)
    assert await stage.mend(findings) == []


_WARNING, _BROKEN = Severity.WARNING, Severity.BROKEN


async def test_a_sound_installation_has_no_finding(stage: Stage):
    assert await stage.findings() == []


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
async def test_every_fault_is_found_and_mended_by_its_remedy(stage: Stage, area: Area):
    await broken_and_mended(stage, area.breaks)
    await stage.run(area.left)
    assert await stage.findings() == []


async def _mended(stage: Stage) -> list[Finding]:
    """What is left when all is mended that `tenancy doctor --mend` mends."""
    left = await stage.findings()
    for _ in range(3):
        async with stage.admin() as admin:
            for finding in filter(can_mend, left):
                await mend(admin, finding, key=stage.install.master_key)
        left = await stage.findings()
    return left


def _spaces(stage: Stage) -> list[str]:
    return ["app", stage.names["scarlet_schema"], stage.names["sienna_schema"]]


def _places(stage: Stage) -> list[tuple[str, str]]:
    """Every database and schema that is held against the reference, and that itself."""
    shared = stage.names["db"]
    return [
        *((shared, space) for space in ("tenancy_reference", *_spaces(stage))),
        *((f"{shared}_template", space) for space in ("app", "tenancy_reference")),
        (stage.names["dawn_db"], "app"),
    ]


async def test_what_keeps_rows_apart_is_never_taken_away_by_itself(stage: Stage):
    await stage.run(
        [
            "create policy narrower on app.notes as restrictive using (id > 0)",
            "alter table app.people add constraint sound check (id > 0)",
            "alter table tenancy_reference.people drop constraint people_email_key",
            "drop policy tenancy_isolation on tenancy_reference.people",
            "alter table tenancy_reference.notes disable row level security",
            "alter policy tenancy_isolation on app.people using (true)",
        ]
    )
    found = {(item.check, item.subject): item for item in await stage.findings()}
    for check, table in (
        ("policies", "table tenancy_reference.people"),
        ("policies", "table app.people"),
        ("row_security", "table tenancy_reference.notes"),
    ):
        assert found[check, table].severity is Severity.UNSAFE

    left = {item.subject: item for item in await _mended(stage)}

    # Of the template's reference as well, from which new tenants are made.
    unique = {f"constraint people_email_key of {space}.people" for _, space in _places(stage)}
    assert set(left) == {
        "policy narrower of app.notes",
        "constraint sound of app.people",
        *unique,
    }
    for finding in left.values():
        assert finding.by_hand
        assert "the schema that has lost it" in finding.advice
    await stage.run(
        [
            "drop policy narrower on app.notes",
            "alter table app.people drop constraint sound",
            "alter table tenancy_reference.people add constraint people_email_key "
            "unique (tenant_id, email)",
        ]
    )
    assert await stage.findings() == []


#: Makes a superuser when the admin runs it, and is content in any case.
_EVIL = """
create function {space}.evil(v integer) returns boolean language plpgsql as $f$
begin
    begin
        execute 'create role taken superuser';
    exception when others then null;
    end;
    return true;
end $f$;
alter function {space}.evil(integer) owner to tenancy_owner;
revoke execute on function {space}.evil(integer) from public;
"""
_TAKEN = "select count(*) from pg_roles where rolname = 'taken'"


async def test_a_mend_never_runs_code_of_users_as_the_admin(stage: Stage):
    for database, space in _places(stage):
        await stage.run([_EVIL.replace("{space}", space)], database)
    await stage.run(
        [
            "set role tenancy_owner",
            "alter table tenancy_reference.people add constraint odd "
            "check (tenancy_reference.evil(id))",
            "reset role",
            "insert into app.people (tenant_id, id, email) values ({rowan_no}, 1, 'a')",
        ]
    )
    async with stage.install.connected() as admin:
        try:
            # The function that changes the role was replaced by one that does not.
            await stage.run(["alter function tenancy.run(text) security invoker"])
            (finding,) = [
                item
                for item in await stage.findings()
                if "odd of app" in item.subject and item.database == stage.names["db"]
            ]
            async with stage.admin() as connections:
                told = await mend(connections, finding, key=stage.install.master_key)
            assert told is not None
            assert "does not work as the owner" in told
            assert await admin.fetchval(_TAKEN) == 0

            assert await _mended(stage) == []

            asked = "select count(*) from pg_constraint where conname = 'odd'"
            assert await admin.fetchval(asked) == 1 + len(_spaces(stage))
            assert await admin.fetchval(_TAKEN) == 0
            # The same is harmful when the admin runs it: the trap works.
            await stage.run(["alter table app.people drop constraint odd"])
            await stage.run(["alter table app.people add constraint odd check (app.evil(id))"])
            assert await admin.fetchval(_TAKEN) == 1
        finally:
            await stage.run(["drop role if exists taken", "delete from app.people"])
            for database, space in _places(stage):
                await stage.run(
                    [
                        f"alter table {space}.people drop constraint if exists odd",
                        f"drop function {space}.evil(integer)",
                    ],
                    database,
                )
    assert await stage.findings() == []


async def test_names_and_texts_with_line_ends_do_not_break_a_mend(stage: Stage):
    name = '"x"";\n drop role nobody;\n--\\\'"'
    await stage.run(
        [
            "create index odd on tenancy_reference.notes (tenant_id, id) "
            "where body <> E'a;\\nb\\\\c'",
            "create index odd on app.notes (tenant_id)",
            f"create table app.{name} (id int)",
            f"grant select on app.{name} to public",
        ]
    )
    assert await _mended(stage) == []
    async with stage.install.connected() as admin:
        defined = (
            "select pg_get_expr(indpred, indrelid) from pg_index "
            "where indexrelid = $1::text::regclass"
        )
        there, here = [
            str(await admin.fetchval(defined, f"{space}.odd"))
            for space in ("tenancy_reference", "app")
        ]
    assert here == there
    assert ";\nb" in here
    await stage.run([f"drop table public.{name}"])
    for database, space in _places(stage):
        await stage.run([f"drop index {space}.odd"], database)
    assert await stage.findings() == []


async def test_a_mend_of_several_statements_is_done_whole_or_not_at_all(stage: Stage):
    finding = Finding(
        check="rules",
        severity=Severity.WARNING,
        server=stage.install.server_config.name,
        database=stage.names["db"],
        subject="schema halves",
        problem="is made",
        statements=("create schema halves", "drop schema no_such_schema"),
    )
    async with stage.admin() as admin:
        told = await mend(admin, finding, key=stage.install.master_key)
    assert told == 'schema "no_such_schema" does not exist'
    async with stage.install.connected() as connection:
        assert await connection.fetchval("select to_regnamespace('halves')") is None


def _as_view(table: str) -> tuple[str, str, str]:
    """Put a view that calls a function of users in the place of a table; how to undo it."""
    space, name = table.split(".")
    return (
        f"alter table {table} rename to kept;;"
        f"create view {table} as select * from {space}.kept where app.evil(1)",
        f"drop view {table};;alter table {space}.kept rename to {name}",
        "is no plain table",
    )


_REPLACED = [
    _as_view("tenancy.overlay"),
    _as_view("tenancy.fence"),
    _as_view("catalog.placement"),
    _as_view("tenancy_reference.tenancy_schema_version"),
    (
        "alter table tenancy.installation add constraint odd check (app.evil(version)) not valid",
        "alter table tenancy.installation drop constraint odd",
        "table tenancy.installation has a constraint that calls app.evil(integer)",
    ),
    (
        "create rule odd as on update to tenancy.fence do also select app.evil(1)",
        "drop rule odd on tenancy.fence",
        "table tenancy.fence has a rule, odd",
    ),
    (
        "create table app.part () inherits (tenancy.fence)",
        "drop table app.part",
        "table tenancy.fence has a part of its own, app.part",
    ),
    (
        "create domain app.word as text;;alter table tenancy.overlay alter schema type app.word",
        "alter table tenancy.overlay alter schema type text;;drop domain app.word",
        'table tenancy."overlay" has a column of another type, schema',
    ),
]


@pytest.mark.parametrize(("replaced", "back", "words"), _REPLACED)
async def test_tables_of_our_own_that_were_replaced_are_not_touched(
    stage: Stage, replaced: str, back: str, words: str
):
    await stage.run([_EVIL.replace("{space}", "app")])
    # What is the keeper's no migration replaces any more; one of an earlier release could.
    await stage.run(replaced.split(";;"))
    async with stage.install.connected() as admin:
        try:
            look = await stage.look()
            assert seen(list(look.findings), Break("", "own_tables", words), stage)
            assert look.fingerprint is None
            for start in (_bootstrap(stage).run(), Engine.attach(stage.install.config)):
                with pytest.raises(UnsafeRoleError) as raised:
                    await start
                assert words in str(raised.value)
            assert await admin.fetchval(_TAKEN) == 0
        finally:
            await stage.run(back.split(";;"))
            await stage.run(["drop role if exists taken", "drop function app.evil(integer)"])
    assert await stage.findings() == []


async def test_a_hybrid_tenants_own_schema_is_held_against_the_shared_one(stage: Stage):
    table = f'"{stage.names["hazel_schema"]}".tenancy_idempotency'
    await stage.run(
        [f"create trigger spy after insert on {table} for each row execute function app.stamped()"]
    )
    (finding,) = await stage.findings()
    assert finding.subject.startswith("trigger spy of tenancy_idempotency in schema t_")
    assert finding.problem == "is not as in schema app"

    await stage.run([f"drop trigger spy on {table}"])

    assert await stage.findings() == []


async def test_a_suspended_tenant_whose_fence_is_open(stage: Stage):
    async with await Engine.attach(stage.install.config) as engine:
        await engine.suspend_tenant("rowan")
        await broken_and_mended(
            stage,
            [
                Break(
                    "update tenancy.fence set open = true where tenant_no = {rowan_no}",
                    "fences",
                    "fence of tenant rowan is open, though it is suspended",
                    severity=_BROKEN,
                )
            ],
        )
        await engine.resume_tenant("rowan")


async def test_what_was_lost_or_left_half_way_is_finished_by_the_commands_it_names(stage: Stage):
    async with await Engine.attach(stage.install.config) as engine:
        for name in ("lost", "half"):
            await engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.SCHEMA)
        placement = (await engine.tenant("lost")).placement
        assert placement is not None
        await stage.run(
            [
                f'drop owned by "{placement.role}"',
                f'drop role "{placement.role}"',
                "update catalog.tenant set status = 'deleting' where tenant_id = 'half'",
                "insert into catalog.tenant (tenant_id, tenant_type) values ('begun', 'free')",
            ]
        )
        found = {finding.subject: finding for finding in await stage.findings()}
        lost, half, begun = (found[f"tenant {name}"] for name in ("lost", "half", "begun"))
        assert f"has lost its role {placement.role}" in lost.problem
        assert "tenancy tenant create lost --type standard --level schema" in lost.advice
        assert half.advice == "tenancy tenant erase half --yes"
        assert begun.advice.startswith("tenancy tenant create begun --type free")
        assert {item.check for item in (lost, half, begun)} == {"placements", "half_way"}

        # What the commands come to.
        await stage.run(lost.statements)
        await engine.create_tenant(TenantContext(tenant_id="lost"), level=IsolationLevel.SCHEMA)
        for name in ("half", "begun"):
            await engine.delete_tenant(name)

        assert await stage.findings() == []
        await engine.delete_tenant("lost")


_SETTINGS = [
    ("row_security", "off", _BROKEN),
    ("session_replication_role", "replica", Severity.UNSAFE),
    ("lo_compat_privileges", "on", Severity.UNSAFE),
    ("log_statement", "all", _WARNING),
    ("log_min_duration_statement", "0", _WARNING),
    ("password_encryption", "md5", _WARNING),
    ("track_activities", "off", _WARNING),
    ("synchronous_commit", "off", _WARNING),
    ("session_preload_libraries", "auto_explain", _WARNING),
]


async def test_settings_of_the_server(stage: Stage):
    before = {}
    async with stage.admin() as admin, admin.session(stage.install.server_config.name) as session:
        for name, value, _ in _SETTINGS:
            before[name] = await session.fetchval("select current_setting($1)", name)
            await session.execute(f"alter system set {name} = '{value}'")
        await session.execute("select pg_reload_conf()")
    for name, value, _ in _SETTINGS:
        await stage.wait_for(name, value)

    findings = await stage.findings()

    assert {(finding.subject, finding.severity) for finding in findings} == {
        (f"setting {name}", Severity.UNSAFE if name == "row_security" else severity)
        for name, _, severity in _SETTINGS
    }
    async with stage.admin() as admin, admin.session(stage.install.server_config.name) as session:
        for finding in findings:
            for statement in finding.statements:
                await session.execute(statement)
    for name, value in before.items():
        await stage.wait_for(name, value)
    assert await stage.findings() == []


async def test_a_budget_that_does_not_fit_the_server(stage: Stage):
    install = dataclasses.replace(
        stage.install,
        settings=dataclasses.replace(stage.install.settings, server_connections_max=1_000),
    )
    (finding,) = await dataclasses.replace(stage, install=install).findings()
    assert (finding.check, finding.subject) == ("connections", "setting max_connections")
    fitting = int(finding.advice.rpartition("=")[2])
    assert finding.advice.startswith("set TENANCY_SERVER_CONNECTIONS_MAX=")

    settings = dataclasses.replace(install.settings, server_connections_max=fitting)
    install = dataclasses.replace(install, settings=settings)
    assert await dataclasses.replace(stage, install=install).findings() == []

    # Each process that answers HTTP has connections of its own.
    settings = dataclasses.replace(settings, http_replicas=2)
    install = dataclasses.replace(install, settings=settings)
    (finding,) = await dataclasses.replace(stage, install=install).findings()
    each = settings.admin_connections_max + settings.catalog_connections_max
    assert finding.advice == f"set TENANCY_SERVER_CONNECTIONS_MAX={fitting - each}"
    assert f"and {each} for each of 2 processes that answer HTTP" in finding.problem


async def test_lines_of_pg_hba_are_mended_by_the_command_as_it_is_told(stage: Stage):
    path = stage.install.server.directory / "data" / "pg_hba.conf"
    before = path.read_text()
    lines = [
        "host all all ::1/128 trust",
        "host all all 10.0.0.0/8 trust",
        "local all all peer map=any # of the machine",
        "host all tenancy_rows 127.0.0.1/32 md5",
        "host all +pg_monitor 192.168.1.0 255.255.255.0 password",
        "host replication all 0.0.0.0/0 trust",
        "nonsense",
    ]
    try:
        with path.open("a") as file:
            file.write("\n".join(lines) + "\n")
        findings = await stage.findings()
        told = [(finding.severity, finding.problem) for finding in findings]
        assert (_WARNING, "lets all into all without a password") in told
        assert (Severity.UNSAFE, "lets all into all without a password") in told
        assert (_WARNING, "lets all into all from 10.0.0.0 without TLS") in told
        assert (_WARNING, "lets all into all by the name of the system's user alone") in told
        assert (
            _WARNING,
            "lets tenancy_rows into all with a password that is easy to take",
        ) in told
        assert (_WARNING, "lets +pg_monitor into all from 192.168.1.0 without TLS") in told
        assert len(told) == 8, "\n".join(map(str, findings))
        for finding in findings:
            assert finding.check == "access_rules"
            command = finding.advice.removeprefix("on the server's machine: ").partition("; then")[
                0
            ]
            subprocess.run(command, shell=True, check=True)
        assert await stage.findings() == []
        # No TLS here, so the line is taken out; with TLS it becomes one for TLS (unit tests).
        assert "#host all all 10.0.0.0/8 scram-sha-256 \n" in path.read_text()
    finally:
        with path.open("w") as file:
            file.write(before)


# What is unsafe stops every start


def _bootstrap(stage: Stage, settings: Settings | None = None) -> Bootstrap:
    return Bootstrap(
        settings=settings or stage.install.settings,
        master_key=stage.install.master_key,
        servers=(stage.install.server_config,),
    )


@pytest.mark.parametrize(
    ("statement", "back"),
    [
        ('alter role "{scarlet_role}" superuser', 'alter role "{scarlet_role}" nosuperuser'),
        ("alter role tenancy_rows bypassrls", "alter role tenancy_rows nobypassrls"),
        (
            'alter policy tenancy_isolation on "{scarlet_schema}".people using (true)',
            'alter policy tenancy_isolation on "{scarlet_schema}".people '
            "using (tenant_id = (select tenancy.tenant()))",
        ),
        (
            "alter table app.people disable row level security",
            "alter table app.people enable row level security",
        ),
        (
            "alter function tenancy.tenant() security invoker",
            "alter function tenancy.tenant() security definer",
        ),
        (
            "alter database {db} set row_security = off",
            "alter database {db} reset row_security",
        ),
        (
            "create trigger spy after insert on app.people for each row "
            "execute function app.stamped()",
            "drop trigger spy on app.people",
        ),
    ],
)
async def test_what_is_unsafe_stops_every_start(stage: Stage, statement: str, back: str):
    await stage.run([statement])
    try:
        with pytest.raises(UnsafeRoleError) as of_set_up:
            await _bootstrap(stage).run()
        with pytest.raises(UnsafeRoleError) as of_attach:
            await Engine.attach(stage.install.config)
    finally:
        await stage.run([back])
    for raised in (of_set_up, of_attach):
        assert "nothing was started" in str(raised.value)
        assert "mend: " in str(raised.value)
    await _bootstrap(stage).run()


async def test_a_release_with_holes_is_refused_unless_it_is_named(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with stage.admin() as admin, admin.session(stage.install.server_config.name) as session:
        version = session.get_server_version()
    hole = Fault(
        cve="CVE-0000-0000",
        kind=FaultKind.BOUNDARY,
        fixed={version.major: version.micro + 1},
        tenants="everything is open",
    )
    known = patch_level.known_releases()
    listed = dataclasses.replace(known, faults=(*known.faults, hole))
    monkeypatch.setattr(patch_level, "known_releases", lambda: listed)
    with pytest.raises(UnsafeServerError, match="CVE-0000-0000") as raised:
        await _bootstrap(stage).run()
    named = re.search(r"TENANCY_VULNERABLE_POSTGRES_ALLOWED=([0-9.]+)", str(raised.value))
    assert named is not None
    with pytest.raises(UnsafeServerError):
        await Engine.attach(stage.install.config)

    allowed = dataclasses.replace(stage.install.settings, vulnerable_postgres_allowed=named[1])
    report = await _bootstrap(stage, allowed).run()

    assert [finding.severity for finding in report.warnings] == [_WARNING]
    assert "CVE-0000-0000" in caplog.text


# Since the last time


async def test_changes_since_the_last_look_are_told_until_they_are_accepted(stage: Stage):
    install = stage.install
    file = DriftFile(install.settings.home, install.server_config.name, install.master_key)
    assert file.read() is None
    first = await _fingerprint(stage)
    file.write(Record(accepted=first, looked_at="then"))
    record, changes = compared(_read(file), await _fingerprint(stage))
    assert changes == []

    # What the runtime does by itself is no drift.
    async with await Engine.attach(install.config) as engine:
        for level in (IsolationLevel.SCHEMA, IsolationLevel.DATABASE):
            await engine.create_tenant(TenantContext(tenant_id=f"new-{level}"), level=level)
        report = await engine.apply_migration(
            "0002_more", "create table more (id integer primary key)"
        )
        assert report.failures == (), report
        record, changes = compared(record, await _fingerprint(stage))
        assert changes == []
        for level in (IsolationLevel.SCHEMA, IsolationLevel.DATABASE):
            await engine.delete_tenant(f"new-{level}")
        record, changes = compared(record, await _fingerprint(stage))
        assert changes == []
        file.write(record)

    asked = "select rolconnlimit from pg_roles where rolname = $1"
    async with install.connected() as admin:
        usual = await admin.fetchval(asked, stage.names["scarlet_role"])
    await stage.run(
        [
            "create role visitor login",
            "grant select on app.more to visitor",
            "create function public.aside() returns int language sql as 'select 1'",
            'alter role "{scarlet_role}" connection limit 7',
        ]
    )
    record, changes = compared(_read(file), await _fingerprint(stage))
    told = {change.key: change.problem for change in changes}
    role = stage.names["scarlet_role"]
    assert set(told) == {
        "role visitor",
        "doctored: table app.more",
        "doctored: function public.aside()",
        f"role {role}",
    }
    assert "was added since" in told["role visitor"]
    assert "connections 7" in told[f"role {role}"]
    seen_before = {change.key: change.last_seen for change in changes}

    # They stay, with the time at which they were last seen as they were.
    record, changes = compared(record, await _fingerprint(stage))
    assert {change.key: change.last_seen for change in changes} == seen_before

    await stage.run(
        [
            "drop owned by visitor",
            "drop role visitor",
            "drop function public.aside()",
            f'alter role "{{scarlet_role}}" connection limit {usual}',
        ]
    )
    record, changes = compared(record, await _fingerprint(stage))
    assert changes == []


async def _apply_limits(stage: Stage) -> None:
    """Have a watchdog give the logins what the settings say."""
    install = stage.install
    limits = install.settings.tier_limits.standard
    wanted = (login_connections_max(limits), f"{{temp_file_limit={temp_file_limit(limits)}}}")
    asked = "select rolconnlimit, rolconfig::text from pg_roles where rolname = any ($1::text[])"
    roles = [stage.names[f"{name}_role"] for name in ("scarlet", "sienna", "dawn")]
    async with watched(install, tiers=install.settings.tiers), install.connected() as admin:
        async with asyncio.timeout(15):
            while {tuple(row) for row in await admin.fetch(asked, roles)} != {wanted}:
                await asyncio.sleep(0.02)


async def test_limits_by_the_settings_are_no_drift_and_limits_by_hand_are(stage: Stage):
    settings = stage.install.settings
    other = dataclasses.replace(
        settings, tiers=tiers(connections_max=3, temp_file_bytes_max=64 * 1024 * 1024)
    )
    changed = dataclasses.replace(stage, install=dataclasses.replace(stage.install, settings=other))
    role = stage.names["scarlet_role"]
    record = Record(accepted=await _fingerprint(stage), looked_at="then")

    # The operator changes the settings; what the logins have follows a moment later.
    assert compared(record, await _fingerprint(changed))[1] == []
    await _apply_limits(changed)
    applied, changes = compared(record, await _fingerprint(changed))
    assert changes == []
    # Who looks with the old settings sees limits that are not by them.
    _, changes = compared(record, await _fingerprint(stage))
    assert f"role {role}" in {change.key for change in changes}

    # Somebody changes them behind the runtime's back.
    await stage.run(
        [
            'alter role "{scarlet_role}" connection limit 7',
            'alter role "{sienna_role}" reset temp_file_limit',
        ]
    )
    _, changes = compared(applied, await _fingerprint(changed))
    sienna = stage.names["sienna_role"]
    assert {change.key for change in changes} == {
        f"role {role}",
        f"role {sienna}",
        f"settings of {sienna} in all databases",
    }
    await _apply_limits(stage)
    assert compared(applied, await _fingerprint(stage))[1] == []


async def _fingerprint(stage: Stage) -> Fingerprint:
    found = (await stage.look()).fingerprint
    assert found is not None
    return found


def _read(file: DriftFile) -> Record:
    found = file.read()
    assert found is not None
    return found


async def test_the_audit_and_the_start_agree_on_what_is_closed(stage: Stage):
    """The list of what stays open is in binding.sql and in audit_rights.sql."""
    await stage.run(["grant execute on all functions in schema pg_catalog to public"])
    opened = await stage.findings()
    assert len(opened) > 200
    assert {finding.check for finding in opened} == {"closed_functions"}, [
        str(finding) for finding in opened if finding.check != "closed_functions"
    ]

    await _bootstrap(stage).run()

    assert await stage.findings() == []
    connection = await asyncpg.connect(stage.install.role_dsn("tenancy_rows"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("select pg_advisory_lock(1)")
    finally:
        await connection.close()
