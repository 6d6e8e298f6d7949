"""A runtime with a second server in another region: tenants are made there and moved between."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres import postgres_running
from support.runtime import Runtime, ended

FILE = """
region = "us"

[[server]]
name = "far"
region = "eu"
dsn = "{dsn}"
"""


@pytest.mark.timeout(600)
def test_tenants_are_made_on_another_server_and_move_between(tmp_path: Path, postgres_bin: Path):
    path = tmp_path / "servers.toml"
    settings = {"TENANCY_POSTGRES_SERVERS_FILE": str(path)}
    # A server of its own: its roles belong to one installation.
    with (
        postgres_running(postgres_bin) as server,
        ended(Runtime(tmp_path / "home", **settings)) as runtime,
    ):
        path.write_text(FILE.format(dsn=server.admin_dsn))
        path.chmod(0o644)
        assert "chmod 600" in runtime.run("up", status=1).stderr
        path.chmod(0o600)
        runtime.run("up")
        migrations = tmp_path / "shop"
        migrations.mkdir()
        (migrations / "0001_orders.sql").write_text("create table orders (id int primary key);")
        runtime.run("schema", "apply", str(migrations))

        born = runtime.json("tenant", "create", "born", "--level", "row", "--region", "eu")
        assert born["placement"]["server"] == "far"
        acme = runtime.json("tenant", "create", "acme", "--level", "row", "--region", "us")
        assert acme["placement"]["server"] == "main"
        kept = runtime.json("tenant", "move", "acme", "--region", "eu", "--dry-run", status=1)
        assert [item["code"] for item in kept["refused"]] == ["residency"]
        unknown = runtime.run("tenant", "move", "acme", "--server", "near", status=1)
        assert "near" in unknown.stderr

        # Whoever names no region can be anywhere.
        anywhere = runtime.json("tenant", "create", "globex", "--level", "row")
        runtime.run("sql", "globex", "insert into orders select generate_series(1, 500)")
        here = anywhere["placement"]["server"]
        way = ("--region", "eu") if here == "main" else ("--server", "main")
        moved = runtime.json("tenant", "move", "globex", *way, "--confirm")
        assert moved["state"] == "confirmed"
        there = runtime.json("tenant", "show", "globex")["placement"]["server"]
        assert {here, there} == {"main", "far"}
        assert runtime.json("sql", "globex", "select count(*) from orders")["rows"] == [[500]]

        named = {check["name"] for check in runtime.json("doctor", status=None)["checks"]}
        assert {"access main", "access far"} <= named
        runtime.run("down")
