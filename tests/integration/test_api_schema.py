"""The schema and named operations over HTTP, on a real server."""

from __future__ import annotations

import asyncio

from support.http_api import USERS, HttpApi

_MIGRATIONS = "/v1/schema/migrations"
_ORDERS = "create table orders (id bigint primary key, note text)"


async def test_a_migration_reaches_tenants_that_exist_and_tenants_to_come(api: HttpApi):
    before = [await api.tenant(level, level) for level in ("row", "schema", "database")]

    done = await api.admin.post(_MIGRATIONS, json={"name": "0001_users", "sql": USERS})
    after = await api.tenant("later", "schema")

    assert done.status_code == 201, done.text
    body = done.json()
    assert (body["number"], body["name"], body["version"]) == (1, "0001_users", 1)
    assert body["namespaces"]["current"] == body["namespaces"]["total"] > 2
    for name, client in zip(("row", "schema", "database", "later"), [*before, after], strict=True):
        answer = await client.post(
            f"/v1/tenants/{name}/query", json={"query": "select count(*) from users"}
        )
        assert answer.json()["rows"] == [[0]], answer.text


async def test_the_schema_is_shown_with_migrations_tables_and_copies(api: HttpApi):
    empty = (await api.admin.get("/v1/schema")).json()
    await api.migrate(USERS, "users")
    await api.migrate(_ORDERS, "0007_2026_orders.sql")

    shown = (await api.admin.get("/v1/schema")).json()

    assert (empty["version"], empty["migrations"], empty["tables"]) == (0, [], [])
    assert shown["version"] == 7
    assert [item["name"] for item in shown["migrations"]] == ["0001_users", "0007_2026_orders"]
    assert shown["tables"] == ["orders", "users"]
    namespaces = shown["namespaces"]
    assert namespaces["behind"] == namespaces["failed"] == 0
    assert namespaces["versions"] == {"7": namespaces["total"]}
    assert shown["failures"] == []


async def test_a_migration_that_is_sent_again_changes_nothing(api: HttpApi):
    for name in ("0001_users", "0001_users", "users"):
        done = await api.admin.post(_MIGRATIONS, json={"name": name, "sql": USERS})
        assert (done.status_code, done.json()["number"]) == (201, 1), done.text

    assert len((await api.admin.get("/v1/schema")).json()["migrations"]) == 1


async def test_migrations_that_come_at_the_same_time_follow_each_other(api: HttpApi):
    done = await asyncio.gather(
        *(
            api.admin.post(
                _MIGRATIONS,
                json={"name": f"t{n}", "sql": f"create table t{n} (id int primary key)"},
            )
            for n in range(4)
        )
    )

    assert [answer.status_code for answer in done] == [201] * 4
    assert sorted(answer.json()["number"] for answer in done) == [1, 2, 3, 4]
    assert (await api.admin.get("/v1/schema")).json()["tables"] == ["t0", "t1", "t2", "t3"]


async def test_a_migration_that_cannot_be_is_refused_and_leaves_nothing(api: HttpApi, subtests):
    await api.migrate()
    for body, status in (
        ({"name": "0002_x"}, 422),
        ({"sql": _ORDERS}, 422),
        ({"name": "", "sql": _ORDERS}, 422),
        ({"name": "../x", "sql": _ORDERS}, 422),
        ({"name": "0000_x", "sql": _ORDERS}, 422),
        ({"name": "99999999999_x", "sql": _ORDERS}, 422),
        ({"name": "0002_x", "sql": "create tabel x ()"}, 422),
        ({"name": "0002_x", "sql": "create table x (id int)"}, 422),
        ({"name": "0002_x", "sql": "create table users (id int primary key)"}, 422),
        ({"name": "0002_x", "sql": "drop role tenancy_owner"}, 422),
        ({"name": "0002_x", "sql": "create table public.x (id int primary key)"}, 422),
        ({"name": "0001_users", "sql": _ORDERS}, 409),
    ):
        with subtests.test(body=body):
            refused = await api.admin.post(_MIGRATIONS, json=body)

            assert refused.status_code == status, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
            shown = (await api.admin.get("/v1/schema")).json()
            assert (shown["version"], shown["tables"]) == (1, ["users"])


async def test_named_operations_are_set_shown_listed_and_removed(api: HttpApi):
    await api.migrate()
    path, first, other = "/v1/operations/top", "select 1", "select count(*) from users"

    made = await api.admin.put(path, json={"sql": first})
    replaced = await api.admin.put(path, json={"sql": other})
    shown = await api.admin.get(path)
    listed = await api.admin.get("/v1/operations")
    removed = await api.admin.delete(path)
    gone = [await api.admin.get(path), await api.admin.delete(path)]

    assert (made.status_code, replaced.status_code) == (201, 200)
    assert shown.json() == {"name": "top", "sql": other}
    assert listed.json() == {"operations": [{"name": "top", "sql": other}]}
    assert (removed.status_code, removed.content) == (204, b"")
    assert [answer.status_code for answer in gone] == [404, 404]


async def test_an_operation_that_tenants_may_not_run_is_not_registered(api: HttpApi, subtests):
    for name, body, status in (
        ("top", {}, 422),
        ("top", {"sql": 5}, 422),
        ("top", {"sql": "selec"}, 400),
        ("top", {"sql": ""}, 400),
        ("top", {"sql": "select 1; select 2"}, 400),
        ("top", {"sql": "drop table users"}, 403),
        ("Top", {"sql": "select 1"}, 422),
        ("a b", {"sql": "select 1"}, 422),
        ("x" * 64, {"sql": "select 1"}, 422),
    ):
        with subtests.test(name=name, body=body):
            refused = await api.admin.put(f"/v1/operations/{name}", json=body)

            assert refused.status_code == status, refused.text
    assert (await api.admin.get("/v1/operations")).json() == {"operations": []}
