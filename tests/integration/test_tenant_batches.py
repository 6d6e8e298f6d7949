"""Many tenants over HTTP, and from a file at the command line."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path

import pytest
from support.http_api import HttpApi
from support.running_api import RunningApi

from tenancy.data_isolation.core.errors import OverloadedError, TenancyError
from tenancy.data_isolation.core.rules import StrategyName

PATH = "/v1/tenant-batches"


async def test_each_of_a_batch_has_its_own_outcome(api: HttpApi):
    await api.migrate()
    await api.tenant("there", "row")
    wanted = [
        {"tenant_id": "a", "isolation_level": "row"},
        {"tenant_id": "b", "isolation_level": "schema"},
        {"tenant_id": "there", "isolation_level": "row"},
        {"tenant_id": "there"},
        {"tenant_id": "clinic", "compliance": ["hipaa"], "isolation_level": "row"},
        {"tenant_id": "No Name"},
        {"tenant_id": "c", "isolation_level": "row", "region": "nowhere"},
        {"tenant_id": "d", "isolation_level": "row", "metadata": {"plan": "x"}},
        {"tenant_id": "e", "tenant_type": "gold"},
        {"tenant_id": "e", "colour": "red"},
        "e",
    ]

    made = await api.admin.post(PATH, json={"tenants": wanted})
    again = await api.admin.post(PATH, json={"tenants": wanted})

    assert (made.status_code, again.status_code) == (200, 200)
    told = [
        item.get("created", item.get("error", {}).get("status")) for item in made.json()["results"]
    ]
    assert told == [True, True, False, 422, 409, 422, 422, True, 422, 422, 422]
    wrong = [item["error"] for item in made.json()["results"][-3:]]
    assert [item["errors"][0]["field"] for item in wrong[:2]] == ["tenant_type", "colour"]
    assert "tenant_type: " in wrong[0]["detail"]
    repeated = [
        item.get("created", item.get("error", {}).get("status")) for item in again.json()["results"]
    ]
    assert repeated == [False, False, False, 422, 409, 422, 422, False, 422, 422, 422]
    first = made.json()["results"][0]["tenant"]
    assert first == (await api.admin.get("/v1/tenants/a")).json()
    for name in ("a", "b", "d"):
        counted = await api.admin.post(
            f"/v1/tenants/{name}/query", json={"query": "select count(*) from users"}
        )
        assert counted.json()["rows"] == [[0]]


async def test_a_batch_that_is_none_is_refused_and_only_operators_make_tenants(make_api, subtests):
    api = await make_api(batch_operations_max=3)
    tenant = await api.tenant("acme", "row")
    wish = {"tenant_id": "a"}
    for body, status in (
        ({"tenants": [wish] * 4}, 413),
        ({"tenants": [wish], "colour": "red"}, 422),
        ({"tenants": wish}, 422),
        ([wish], 422),
        ({"tenants": []}, 200),
        ({"tenants": [{"tenant_id": "a", "tenant_type": "gold"}]}, 200),
    ):
        with subtests.test(body=body):
            assert (await api.admin.post(PATH, json=body)).status_code == status
    assert (await tenant.post(PATH, json={"tenants": [wish]})).status_code == 403
    assert (await api.anonymous.post(PATH, json={"tenants": [wish]})).status_code == 401
    assert [item.tenant_id for item in await api.engine.tenants()] == ["acme"]


async def test_a_tenant_that_is_there_is_the_same_only_if_all_that_is_asked_for_is(
    api: HttpApi, subtests
):
    there = {
        "tenant_id": "there",
        "tenant_type": "premium",
        "isolation_level": "schema",
        "compliance": ["gdpr"],
        "metadata": {"plan": "x", "n": 1, "kept": [1, {"a": None}]},
    }
    made = await api.admin.post(PATH, json={"tenants": [there]})
    assert made.json()["results"][0]["created"] is True, made.text
    left_out = {name: value for name, value in there.items() if name != "isolation_level"}
    for same in (there, left_out, there | {"metadata": there["metadata"] | {"n": 1.0}}):
        with subtests.test(same=same):
            again = await api.admin.post(PATH, json={"tenants": [same]})
            assert again.json()["results"][0].get("created") is False, again.text
    for change, told in (
        ({"metadata": {"plan": "y", "n": True, "m": 2}}, "metadata differs in 'kept', 'm', 'n', "),
        ({"metadata": {}}, "metadata differs in 'kept', 'n', 'plan'"),
        ({"tenant_type": "free"}, "tenant_type is premium, not free"),
        ({"isolation_level": "row"}, "isolation_level is schema, not row"),
        ({"region": "europe"}, "region is none, not europe"),
        ({"compliance": []}, "compliance is gdpr, not none"),
    ):
        with subtests.test(change=change):
            other = there | change
            batch = await api.admin.post(PATH, json={"tenants": [{"tenant_id": "ok"}, other]})
            single = await api.admin.post(
                "/v1/tenants", json=other, headers={"Idempotency-Key": "again"}
            )
            problem = batch.json()["results"][1]["error"]
            for found in (problem, single.json()):
                assert found["status"] == 409
                assert found["type"] == "urn:tenancy:problem:tenant-exists"
                assert told in found["detail"]
    wrong = there | {"metadata": {"plan": "\0"}}
    batch = await api.admin.post(PATH, json={"tenants": [{"tenant_id": "ok"}, wrong]})
    assert batch.json()["results"][0].get("created") is False
    assert batch.json()["results"][1]["error"]["status"] != 409


async def test_tenants_are_counted_by_what_has_changed(api: HttpApi):
    count = api.engine.catalog.count_by_strategy
    bodies = [{"tenant_id": f"t{number}", "isolation_level": "row"} for number in range(5)]
    await api.admin.post(PATH, json={"tenants": bodies})
    await api.tenant("own", "schema")
    assert await count() == {StrategyName.ROW_LEVEL: 5, StrategyName.SCHEMA_LEVEL: 1}

    # As often as it takes until the changes are added up for good.
    for turn in range(70):
        await api.engine.catalog.pool.write(
            "insert into catalog.placement_change (level, hybrid, tenants) "
            "select 'schema', false, n from unnest(array[1, -1, 1, -1]) n returning change_id"
        )
        if turn % 20 == 0:
            assert (await count())[StrategyName.SCHEMA_LEVEL] == 1
    await count()
    left = await api.engine.catalog.pool.value("select count(*) from catalog.placement_change")
    assert left < 200
    await api.engine.suspend_tenant("t1")
    await api.engine.resume_tenant("t1")
    await api.admin.delete("/v1/tenants/t0")
    await api.admin.delete("/v1/tenants/own")
    assert await count() == {StrategyName.ROW_LEVEL: 4}
    really = await api.engine.catalog.pool.value("select count(*) from catalog.placement")
    assert really == 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.csv"
    path.write_text(
        "tenant_id,isolation_level,compliance\na,,\nb,schema,\nclinic,row,hipaa\nc,cell,\nd,,\n"
    )
    return path


async def test_a_file_makes_tenants_and_tells_which_lines_came_to_nothing(
    running: RunningApi, file: Path
):
    command = ("tenant", "create", "--from", str(file), "--level", "row")
    told = (await running.run(*command, "--json", status=1)).json()

    assert (told["tenants"], told["created"], told["existing"], told["failed"]) == (5, 3, 0, 2)
    assert {(item["line"], item["tenant_id"]) for item in told["errors"]} == {
        (4, "clinic"),
        (5, "c"),
    }
    levels = {
        item.tenant_id: item.placement and item.placement.level.value
        for item in await running.api.engine.tenants()
    }
    assert levels == {"a": "row", "b": "schema", "d": "row"}
    said = await running.run(*command, status=1)
    assert said.out.startswith("0 made, 3 were there, 2 failed")
    assert "line 4: clinic" in said.err


async def test_a_batch_that_is_turned_away_is_sent_again(
    running: RunningApi, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []

    async def full(path: str) -> TenancyError | None:
        seen.append(path)
        return OverloadedError(retry_after_s=1.0) if len(seen) < 3 else None

    running.hook = full
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(sys, "stdin", StringIO("tenant_id\na\nb\n"))

    said = await running.run("tenant", "create", "--from", "-", "--level", "row", "--json")

    assert said.json()["created"] == 2
    assert seen == [PATH] * 3


async def test_the_line_is_told_that_is_not_in_utf_8(running: RunningApi, tmp_path: Path):
    path = tmp_path / "latin.csv"
    lines = [b"tenant_id,metadata", *(b"t%04d," % number for number in range(2_000)), b"x,\xe9"]
    path.write_bytes(b"\n".join(lines) + b"\n")

    said = await running.run("tenant", "create", "--from", str(path), "--level", "row", status=2)

    assert "line 2002 is not in UTF-8" in said.err


async def test_wrong_use_is_told_and_makes_nothing(running: RunningApi, tmp_path: Path, subtests):
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("name\nacme\n")
    for arguments in (
        ("tenant", "create"),
        ("tenant", "create", "acme", "--from", str(wrong)),
        ("tenant", "create", "--from", str(wrong)),
        ("tenant", "create", "--from", str(tmp_path / "nothing.csv")),
    ):
        with subtests.test(arguments=arguments):
            said = await running.run(*arguments, status=2)
            assert said.out == ""
    assert await running.api.engine.tenants() == []
