"""`tenancy tenant export` over HTTP, on a real server: all that a tenant can hold comes out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.running_api import MakeRunning, RunningApi
from support.small_disk import SmallDisk

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.errors import StatementError
from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.serve import export, table_pages
from tenancy.data_isolation.serve.json_documents import parse_json

LEVELS = ("row", "schema", "database")
_QUERY = "/v1/tenants/acme/query"

_TYPES = """
create type mood as enum ('sad', 'ok', 'happy', 'so-so');
create type "Pair" as (a integer, b text);
create domain small as integer check (value < 100);
create domain document as jsonb;
"""
#: Types of keys, and keys in SQL. None of the lists is in the order of its type.
_KEYS = {
    "text": [
        *("''", "'b'", "'B'", "'é'", "'z'", "'a''b'", "e'a\\nb'", "e'a\\tb'", "'\"'", "'\\'"),
        *("'\U0001f600'", "' '", "'null'", "'%s $1 :a'", "'{}'", "'--'", "'\u202e'"),
    ],
    "varchar(20)": ["'b '", "'b'", "''"],
    "char(3)": ["'b'", "'a'", "'abc'"],
    '"char"': ["'b'", "'a'"],
    "name": ["'b'", "'A'"],
    "smallint": ["3", "-32768", "32767"],
    "bigint": ["9223372036854775807", "-9223372036854775808", "0", "1"],
    "boolean": ["true", "false"],
    "uuid": [
        "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        "'00000000-0000-0000-0000-000000000000'",
        "'8e03978e-40d5-43dd-bc93-6894a57f9324'",
    ],
    "timestamptz": [
        *("'infinity'", "'-infinity'", "'2024-01-01 00:00:00.000001+00'", "'4713-01-01 BC'"),
        *("'2024-01-01 00:00:00+00'", "'20000-01-01'"),
    ],
    "timestamp": ["'2024-02-29 12:00'", "'2024-02-29 12:00:00.5'", "'-infinity'"],
    "date": ["'2024-02-29'", "'infinity'", "'0044-03-15 BC'"],
    "timetz": ["'12:00+02'", "'12:00-02'"],
    "interval": ["'1 month'", "'-1 day 2 hours'", "'29 days'", "'1 year 00:00:00.000001'"],
    "numeric": ["'NaN'", "1.50", "-2", "12345678901234567890.123456789", "'Infinity'", "0.0"],
    "numeric(5,2)": ["1.50", "-2"],
    "real": ["0.1", "'NaN'", "'-Infinity'", "3e38", "1e-40"],
    "double precision": ["0.1", "0.30000000000000004", "'NaN'", "'Infinity'", "5e-324"],
    "money": ["'-1.50'", "'12,345.67'"],
    "bytea": ["'\\x00ff'", "''", "'\\x00'", "'\\x27225c'"],
    "mood": ["'so-so'", "'happy'", "'sad'"],
    "mood[]": ["'{happy,sad}'", "'{sad}'", "'{}'"],
    "small": ["5", "-7"],
    "integer[]": ["'{1,2}'", "'[0:1]={1,2}'", "'{}'", "'{{1,2},{3,4}}'", "'{1,null}'", "'{1}'"],
    "text[]": ["'{\"a,b\",null}'", "'{\"NULL\"}'", "'{\"\"}'", '\'{"{","\\\\"}\'', "'{é}'"],
    "jsonb[]": ["array['1'::jsonb]", "array['null'::jsonb, null]", "array['\"a\"'::jsonb]"],
    "jsonb": [
        *("'null'", "'\"text\"'", "'\"null\"'", "'1'", "'1.0000000000000000000001'", "'[]'"),
        *('\'{"a": [1, {"b": null}]}\'', "'true'", "'\"\"'", "'[1]'", "'{}'"),
    ],
    "document": ["'null'", "'\"text\"'", "'1'", "'{}'"],
    '"Pair"': ["row(2, 'a')", "row(1, 'b,\"c')", "row(1, null)", "row(null, '')"],
    '"Pair"[]': ["array[row(2, 'a')::\"Pair\"]", 'array[row(1, null)::"Pair", null]'],
    "inet": ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'", "'2001:db8::/32'"],
    "macaddr": ["'08:00:2b:01:02:03'", "'00:00:00:00:00:00'"],
    "int4range": ["'[1,5)'", "'empty'", "'(,5)'", "'[1,)'"],
    "nummultirange": ["'{[1,2),[3,4)}'", "'{}'"],
    "bit(3)": ["b'101'", "b'001'"],
    "bit varying": ["b'101'", "b''", "b'1'"],
    "tsvector": ["'a:1 b:2'", "''"],
}
_ORDERS = """
create table "Order" (
    "select" integer,
    "Größe" text collate "C",
    "a:b" numeric(10, 2),
    "a""b" jsonb,
    " " text[] not null default '{}',
    "t" text,
    doubled integer generated always as ("select" * 2) stored,
    number integer generated always as identity,
    primary key ("Größe", "select")
);
create table "a/b.. %\x07" (id integer primary key);
create table nothing (id integer primary key, note text);
create view shown as select "select" from "Order";
"""


#: Tables that a hybrid tenant has in a schema of its own; the others it shares.
_SENSITIVE = """
comment on table "Order" is '@sensitive';
comment on table k00 is '@sensitive';
"""


def _key_tables() -> dict[str, str]:
    """The name of a table for each type of key."""
    return {f"k{number:02d}": kind for number, kind in enumerate(_KEYS)}


def _migration() -> str:
    tables = (
        f"create table {name} (value text, k {kind} primary key);"
        for name, kind in _key_tables().items()
    )
    return _TYPES + _ORDERS + "\n".join(tables) + _SENSITIVE


async def _fill(running: RunningApi, tenant: str) -> None:
    """The same rows for whatever tenant, in an order that is not that of the keys."""
    for name, kind in _key_tables().items():
        rows = ", ".join(f"('n{number}', {key})" for number, key in enumerate(_KEYS[kind]))
        await running.sql(tenant, f"insert into {name} (value, k) values {rows}")
    await running.sql(
        tenant,
        'insert into "Order" ("select", "Größe", "a:b", "a""b", " ", number) '
        "overriding system value "
        "select n, chr(64 + n % 3), n / 3.0, case n % 2 when 0 then "
        "jsonb_build_object('n', n, 'none', null) end, array[n::text, null, 'é\"'], n "
        "from generate_series(1, 40) as n",
    )
    await running.sql(tenant, 'insert into "a/b.. %\x07" values (1)')


async def _export(running: RunningApi, tenant: str, target: Path) -> dict[str, Any]:
    said = await running.run("tenant", "export", tenant, "--output", str(target), "--json")
    manifest: dict[str, Any] = said.json()
    assert manifest.pop("directory") == str(target)
    return manifest


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".json"}


def _rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{name}.ndjson").read_bytes().splitlines()]


def _small_pages(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(table_pages, "_ROWS_FIRST", rows)
    monkeypatch.setattr(table_pages, "_ROWS_MAX", rows)


@pytest.mark.timeout(180)
async def test_every_kind_of_key_comes_out_whole_and_the_same_at_every_level(
    running: RunningApi, tmp_path: Path, monkeypatch, subtests
):
    await running.api.migrate(_migration(), "all")
    for level in (*LEVELS, "hybrid"):
        if level == "hybrid":
            context = TenantContext(tenant_id=level)
            await running.api.engine.create_tenant(context, level=IsolationLevel.ROW, hybrid=True)
        else:
            await running.api.tenant(level, level)
        await _fill(running, level)
        # A neighbour whose rows must not show.
        await running.api.tenant(f"by-{level}", "row" if level == "hybrid" else level)
        await running.sql(f"by-{level}", "insert into nothing values (1, 'not yours')")

    manifest = await _export(running, "row", tmp_path / "row")
    expected = _files(tmp_path / "row")
    for level, rows in (("row", 1), ("schema", 2), ("database", 3), ("hybrid", 2)):
        with subtests.test(level=level, rows=rows), monkeypatch.context() as patch:
            _small_pages(patch, rows)
            target = tmp_path / f"{level}-{rows}"
            other = await _export(running, level, target)

            assert _files(target) == expected
            assert other["tables"] == manifest["tables"]
            assert other["isolation_level"] == ("row" if level == "hybrid" else level)

    for name, kind in _key_tables().items():
        with subtests.test(kind=kind):
            ordered = await running.sql("row", f"select value from {name} order by k")
            found = [row["value"] for row in _rows(tmp_path / "row", name)]
            assert found == [value for (value,) in ordered]
            assert len(found) == len(_KEYS[kind])
    assert len(_rows(tmp_path / "row", "Order")) == 40
    assert expected["nothing.ndjson"] == b""
    assert "shown.ndjson" not in expected


@pytest.mark.timeout(120)
async def test_exported_rows_are_parameters_and_give_the_same_export_again(
    running: RunningApi, tmp_path: Path
):
    await running.api.migrate(_migration(), "all")
    await running.api.tenant("acme", "row")
    await running.api.tenant("copy", "schema")
    await _fill(running, "acme")
    # JSON's null and lower bounds of arrays are what the wire form cannot tell.
    for name, kind in _key_tables().items():
        if kind in ("jsonb", "document", "jsonb[]", "integer[]"):
            await running.sql("acme", f"delete from {name} where cast(k as text) ~ 'null|='")

    first = await _export(running, "acme", tmp_path / "first")
    for table in first["tables"]:
        for line in (tmp_path / "first" / table["file"]).read_bytes().splitlines():
            await _insert(running, "copy", table, parse_json(line, depth_max=9))
    second = await _export(running, "copy", tmp_path / "second")

    assert second["tables"] == first["tables"]
    assert _files(tmp_path / "second") == _files(tmp_path / "first")


async def _insert(
    running: RunningApi, tenant: str, table: dict[str, Any], row: dict[str, Any]
) -> None:
    names = [column["name"] for column in table["columns"] if not column["generated"]]
    always = any(column["identity"] == "always" for column in table["columns"])
    columns = ", ".join(quote_identifier(name) for name in names)
    marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    await running.sql(
        tenant,
        f"insert into {quote_identifier(table['name'])} ({columns}) "
        f"{'overriding system value ' if always else ''}values ({marks})",
        *(row[name] for name in names),
    )


async def test_the_manifest_says_what_is_there(running: RunningApi, tmp_path: Path):
    await running.api.migrate(_TYPES + _ORDERS, "0007_orders")
    await running.api.tenant("acme", "schema")
    await running.sql("acme", 'insert into "Order" ("select", "Größe") values (1, $1)', "é")
    target = tmp_path / "acme"
    target.mkdir()

    said = await running.run("tenant", "export", "acme", "-o", str(target))

    manifest = json.loads((target / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == (
        export.FORMAT,
        export.FORMAT_VERSION,
    )
    assert (manifest["tenant_id"], manifest["isolation_level"]) == ("acme", "schema")
    assert manifest["schema_version"] == 7
    times = [datetime.fromisoformat(manifest[name]) for name in ("started_at", "exported_at")]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)
    tables = {table["name"]: table for table in manifest["tables"]}
    assert list(tables) == ["Order", "a/b.. %\x07", "nothing"]
    order = tables["Order"]
    assert order["primary_key"] == ["Größe", "select"]
    columns = {column["name"]: column for column in order["columns"]}
    assert columns["a:b"] == {
        "name": "a:b",
        "type": "numeric(10,2)",
        "not_null": False,
        "generated": False,
        "identity": None,
    }
    assert columns["doubled"]["generated"]
    assert columns["number"]["identity"] == "always"
    assert columns[" "]["type"] == "text[]"
    assert [table["rows"] for table in tables.values()] == [1, 0, 0]
    for table in tables.values():
        content = (target / table["file"]).read_bytes()
        assert len(content) == table["bytes"]
        assert hashlib.sha256(content).hexdigest() == table["sha256"]
        assert stat.S_IMODE((target / table["file"]).stat().st_mode) == 0o600
    assert (target / "a%2Fb.. %25%07.ndjson").exists()
    assert list(_rows(target, "Order")[0]) == list(columns)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    lines = said.out.splitlines()
    assert lines[0].split() == ["table", "rows", "bytes"]
    assert lines[1].split()[:2] == ["Order", "1"]
    assert lines[-1] == f"exported to {target}"
    assert "\x07" not in said.out


async def test_without_tables_there_is_a_manifest(running: RunningApi, tmp_path: Path):
    await running.api.tenant("acme", "row")

    manifest = await _export(running, "acme", tmp_path / "acme")

    assert (manifest["schema_version"], manifest["tables"]) == (0, [])
    assert [path.name for path in (tmp_path / "acme").iterdir()] == ["manifest.json"]


_DOCS = "create table docs (id integer primary key, body text)"


async def _docs(running: RunningApi, rows: int, characters: int = 5) -> None:
    await running.api.migrate(_DOCS, "docs")
    await running.api.tenant("acme", "row")
    await running.sql(
        "acme",
        "insert into docs select n, repeat('x', $2::int) from generate_series(1, $1::int) as n",
        rows,
        characters,
    )


async def test_the_limits_of_one_result_are_none_of_a_table(
    make_running: MakeRunning, tmp_path: Path
):
    running = await make_running(result_rows_max=300, result_bytes_max=100_000)
    await _docs(running, 2_000)
    await running.sql(
        "acme", "update docs set body = repeat('y', 40000) where id between 50 and 60"
    )

    manifest = await _export(running, "acme", tmp_path / "acme")

    assert manifest["tables"][0]["rows"] == 2_000
    rows = _rows(tmp_path / "acme", "docs")
    assert [row["id"] for row in rows] == list(range(1, 2_001))
    assert [len(row["body"]) for row in rows[48:51]] == [5, 40_000, 40_000]


async def test_json_that_no_answer_can_hold_comes_out_as_it_is(running: RunningApi, tmp_path: Path):
    await running.api.migrate("create table docs (id int primary key, j json, b jsonb)", "docs")
    await running.api.tenant("acme", "row")
    deep = "[" * 3_000 + "]" * 3_000
    for number, text in enumerate(('{"a":  1}', '{"a": 1,\n"a": 2}', '"\\ud800"', deep, "null")):
        await running.sql(
            "acme",
            "insert into docs values ($1, cast($2::text as json), "
            "case when $2 like '%ud8%' then '[]' else cast($2 as jsonb) end)",
            number,
            text,
        )

    await _export(running, "acme", tmp_path / "acme")

    assert (tmp_path / "acme" / "docs.ndjson").read_text().splitlines() == [
        '{"id":0,"j":{"a":1},"b":{"a":1}}',
        '{"id":1,"j":{"a": 1, "a": 2},"b":{"a":2}}',
        '{"id":2,"j":"\\ud800","b":[]}',
        f'{{"id":3,"j":{deep},"b":{deep}}}',
        '{"id":4,"j":null,"b":null}',
    ]


async def test_a_row_that_is_too_large_by_itself_is_named(
    make_running: MakeRunning, tmp_path: Path
):
    running = await make_running(result_bytes_max=100_000)
    await _docs(running, 20)
    await running.sql("acme", "update docs set body = repeat('y', 200000) where id = 7")

    said = await running.run("tenant", "export", "acme", "-o", str(tmp_path / "x"), status=1)

    assert said.err.splitlines()[0] == (
        "error: table 'docs': the row with the key 'id' = '7' is larger than one result may be"
    )
    assert "TENANCY_RESULT_BYTES_MAX" in said.err
    _check_nothing_is_left(tmp_path)


def _check_nothing_is_left(directory: Path, *others: str) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted(("state", *others))


async def test_rows_that_stay_are_in_it_once_while_others_come_and_go(
    running: RunningApi, tmp_path: Path, monkeypatch
):
    await running.api.migrate(_DOCS, "docs")
    await running.api.tenant("acme", "database")
    await running.sql(
        "acme", "insert into docs select n * 10, 'stays' from generate_series(1, 60) as n"
    )
    _small_pages(monkeypatch, 4)
    pages = 0

    async def meddle(path: str) -> None:
        nonlocal pages
        if path != _QUERY:
            return
        pages += 1
        # Around the place that is being read, on both sides.
        here = pages * 40
        await running.sql(
            "acme",
            "insert into docs select n * 10 + 3, 'comes' from generate_series($1::int, $2::int) n "
            "where n < 60 on conflict do nothing",
            (here - 80) // 10,
            (here + 80) // 10,
        )
        await running.sql(
            "acme", "delete from docs where body = 'comes' and id % 20 = 3 and id > $1", here
        )

    running.hook = meddle
    await _export(running, "acme", tmp_path / "acme")

    found = [row["id"] for row in _rows(tmp_path / "acme", "docs")]
    assert [item for item in found if item % 10 == 0] == [n * 10 for n in range(1, 61)]
    assert found == sorted(set(found))
    assert pages > 10


async def test_an_error_half_way_leaves_nothing(running: RunningApi, tmp_path: Path, monkeypatch):
    await _docs(running, 10)
    await running.api.migrate("create table zebras (id integer primary key)", "0002_zebras")
    _small_pages(monkeypatch, 3)
    (tmp_path / "target").mkdir()
    asked = 0

    async def fail(path: str) -> Any:
        nonlocal asked
        asked += path == _QUERY
        return StatementError("the disk is on fire", "58030") if asked == 7 else None

    running.hook = fail
    said = await running.run(
        "tenant", "export", "acme", "-o", str(tmp_path / "target"), "--json", status=1
    )

    assert said.err == "error: table 'zebras': the disk is on fire (SQLSTATE 58030)\n"
    assert said.out == ""
    _check_nothing_is_left(tmp_path, "target")
    assert list((tmp_path / "target").iterdir()) == []


async def test_a_schema_that_changes_meanwhile_is_told(running: RunningApi, tmp_path: Path):
    await _docs(running, 10)

    async def migrate(path: str) -> None:
        if path == _QUERY:
            running.hook = _no_hook
            await running.api.migrate("alter table docs add column note text", "0002_note")

    running.hook = migrate
    said = await running.run("tenant", "export", "acme", "-o", str(tmp_path / "x"), status=1)

    assert said.err.startswith("error: the schema has changed meanwhile\nhint: ")
    _check_nothing_is_left(tmp_path)


async def _no_hook(_: str) -> None:
    return None


async def test_a_column_that_the_tenants_copy_lacks_points_at_the_copies(
    running: RunningApi, tmp_path: Path
):
    await _docs(running, 10)

    async def behind(path: str) -> Any:
        return StatementError("no column", "42703") if path == _QUERY else None

    running.hook = behind
    said = await running.run("tenant", "export", "acme", "-o", str(tmp_path / "x"), status=1)

    assert "`tenancy schema status`" in said.err


async def test_what_cannot_be_exported_is_told_before_anything_is_made(
    running: RunningApi, tmp_path: Path, monkeypatch, subtests
):
    await _docs(running, 1)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    await running.run("tenant", "create", "idle")
    await running.run("tenant", "suspend", "idle")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    for tenant, target, told in (
        ("ghost", tmp_path / "x", "There is no tenant 'ghost'"),
        ("NO TENANT", tmp_path / "x", "There is no tenant 'NO TENANT'"),
        ("idle", tmp_path / "x", "tenant idle is suspended"),
        ("acme", full, f"the directory {full} is not empty"),
        ("acme", full / "mine", "is there already and is no directory"),
        ("acme", tmp_path / "a" / "b", f"there is no directory {tmp_path / 'a'}"),
        ("acme", Path("."), "the working directory"),
        ("acme", tmp_path / ("x" * 300), "cannot be written: File name too long"),
        ("acme", Path("/proc/none"), "/proc/none cannot be written"),
    ):
        with subtests.test(tenant=tenant, target=target):
            said = await running.run("tenant", "export", tenant, "-o", str(target), status=1)

            assert told in said.err.splitlines()[0], said.err
            assert said.out == ""
    _check_nothing_is_left(tmp_path, "full", "here")
    assert [path.name for path in full.iterdir()] == ["mine"]


async def test_a_disk_that_gets_full_is_told_and_nothing_is_left(
    running: RunningApi, small_disk: SmallDisk
):
    await _docs(running, 300, 10_000)
    small_disk.mount(1)

    said = await running.run("tenant", "export", "acme", "-o", f"{small_disk.path}/x", status=1)

    assert said.err == f"error: {small_disk.path}/x cannot be written: No space left on device\n"
    assert list(small_disk.path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interruption_leaves_nothing(running: RunningApi, tmp_path: Path, number):
    await _docs(running, 10)
    reached = asyncio.Event()
    gone = asyncio.Event()

    async def wait(path: str) -> None:
        if path == _QUERY:
            reached.set()
            await gone.wait()

    running.hook = wait
    target = tmp_path / "acme"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("tenancy")),
        *("tenant", "export", "acme", "--output", str(target)),
        env=os.environ | {"TENANCY_HOME": str(running.home)},
        stderr=asyncio.subprocess.PIPE,
        # Whoever runs the tests in the background of a script has them ignore it.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        async with asyncio.timeout(30):
            await reached.wait()
            assert len(list(tmp_path.glob(".tenancy-*"))) == 1
            process.send_signal(number)
            _, errors = await process.communicate()
    finally:
        gone.set()
        if process.returncode is None:
            process.kill()

    assert process.returncode == 130
    assert errors.decode() == f"error: interrupted; nothing was left at {target}\n"
    _check_nothing_is_left(tmp_path)


async def test_erasing_has_two_names(running: RunningApi):
    for name in ("erase", "delete"):
        await running.run("tenant", "create", name)

        said = await running.run("tenant", name, name, "--yes", "--json")

        assert said.json() == {"tenant_id": name, "erased": True, "deleted": True}
        await running.run("tenant", "show", name, status=1)
    helped = await running.run("tenant", "--help")
    assert "erase" in helped.out
    assert "delete" not in helped.out
