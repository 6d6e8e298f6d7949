"""Independent checkers of row security (`pgrls`, `rlsgrid`) on an installation of the product's.

They live in an environment of their own, `.venv-oracles`, which `make oracles` builds. Nothing of
the product runs in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from support.engines import opened
from support.install import SERVER, Install, bootstrap, make_install
from support.postgres import PostgresServer
from tenancy.data_isolation.core.crypto import binding_key
from tenancy.data_isolation.core.identifiers import DatabaseName
from tenancy.data_isolation.core.types import IsolationLevel, Placement, TenantContext

_ROOT = Path(__file__).parents[2]
_ORACLES = _ROOT / "tests" / "oracles"
_BIN = _ROOT / ".venv-oracles" / "bin"
_RUN_BOUND = _ORACLES / "tool" / "run_bound.py"
#: The binding of the product, as the provers have to be told: what gives a session its identity.
IDENTITY = "tenancy.tenant"
MODES = ("anon", "cross-tenant", "write", "escalation", "reachability")
#: Tenants that the live probes pretend to be; the first three are those of level ROW.
_ACTORS = [1, 2, 3]
_LEVELS = {
    "row-1": (IsolationLevel.ROW, False),
    "row-2": (IsolationLevel.ROW, False),
    "row-3": (IsolationLevel.ROW, False),
    "schema": (IsolationLevel.SCHEMA, False),
    "database": (IsolationLevel.DATABASE, False),
    "hybrid": (IsolationLevel.ROW, True),
}


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """What a checker reports about one object, or that it could not decide about it."""

    check: str
    rule: str
    place: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Database:
    """A database to check.

    `schemas` are those of ours in it, with the name that findings give them; `probes` says which
    roles work for tenants in a schema; `signed_as` is the database whose keys sign bindings.
    """

    name: str
    title: str
    schemas: dict[str, str]
    probes: dict[str, tuple[str, ...]]
    signed_as: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Proofs:
    """Tables that were proven isolated, those of which a live probe agreed, and everything else."""

    proven: set[str]
    agreed: set[str]
    findings: set[Finding]


@dataclass(frozen=True, kw_only=True, slots=True)
class Oracles:
    """The checkers, and what they are run on."""

    install: Install
    shared: Database
    own: Database
    logins: tuple[str, ...]
    directory: Path

    def lint(self, database: Database) -> set[Finding]:
        """Every finding of `pgrls lint`, hints included."""
        report = self._pgrls(database, "lint")
        return {
            Finding(
                "lint", item["rule_id"], self._place(database, item["location"]), item["message"]
            )
            for item in report["violations"]
        }

    def verify(self, database: Database, mode: str) -> Proofs:
        """What `pgrls verify` proves, and what its live probe saw of it, where the mode has one."""
        probe = [] if mode == "reachability" else ["--probe"]
        words = ("verify", "--mode", mode, "--strict", "--auth-function", IDENTITY, *probe)
        proofs = Proofs(proven=set(), agreed=set(), findings=set())
        for item in self._pgrls(database, *words)["tables"]:
            place = self._place(database, item["table"])
            verdict = item["static_verdict" if probe else "verdict"]
            if verdict == "isolated":
                proofs.proven.add(place)
            else:
                proofs.findings.add(Finding(f"verify {mode}", verdict, place))
            if not probe:
                continue
            if item["agreement"] == "agree":
                proofs.agreed.add(place)
            else:
                said = Finding(f"probe {mode}", item["agreement"], place, item["detail"])
                proofs.findings.add(said)
        return proofs

    def rlsgrid(
        self, database: Database, *, iterations: int = 600
    ) -> tuple[set[Finding], set[str]]:
        """Findings of `rlsgrid check` with three tenants, and the probes that it made."""
        found: set[Finding] = set()
        probed: set[str] = set()
        for schema in database.probes:
            probes = self.directory / "probes.json"
            config = self._rlsgrid_config(database, schema, iterations)
            answer = self._run(
                database, "rlsgrid", "check", "--config", config, "--json", probes=probes
            )
            told = json.loads(probes.read_text())
            found |= {
                Finding("rlsgrid", "breach", self._grid_place(database, item), item["detail"])
                for item in answer["breaches"]
            }
            found |= {
                Finding("rlsgrid", "not seeded", self._place(database, table), reason)
                for table, reason in told["not_seeded"]
            }
            found |= {
                Finding("rlsgrid", "failed", self._named(database, name), f"{state} {message}")
                for name, state, message in told["failed"]
                if state != "42501"
            }
            probed |= {self._named(database, name) for name in told["probed"]}
        return found, probed

    def own_rows(self, database: Database) -> dict[str, str]:
        """What the probes of `rlsgrid` say when a tenant probes its own rows."""
        found: dict[str, str] = {}
        for schema in database.probes:
            answer = self._run(database, "own-rows", self._rlsgrid_config(database, schema, 1))
            for role, _, table, operation, said in answer:
                name = f"{role} {schema}.{table} {operation}"
                found[self._named(database, name)] = said
        return found

    def _pgrls(self, database: Database, *words: str) -> Any:
        config = self.directory / "pgrls.toml"
        config.write_text(_pgrls_config(database, self.logins))
        dsn = self._dsn(database, "app")
        return self._run(
            database, "pgrls", *words, "--config", config, "--database-url", dsn, "--format", "json"
        )

    def _dsn(self, database: Database, schema: str) -> str:
        """The superuser's, with the search_path of a tenant's session: triggers need one."""
        return f"{self.install.admin_dsn(database.name)}?options=-csearch_path%3D{schema},app"

    def _run(self, database: Database, *words: str | Path, probes: Path | None = None) -> Any:
        """Run a checker; its report, which it prints as JSON."""
        key = binding_key(self.install.master_key, SERVER, DatabaseName(database.signed_as), 1)
        binding = {"key_id": key.key_id, "secret": key.secret.hex(), "tenants": _ACTORS}
        done = subprocess.run(
            [_BIN / "python", "-I", _RUN_BOUND, *words],
            env={
                "PATH": os.defpath,
                "ORACLE_BINDING": json.dumps(binding),
                "ORACLE_PROBES": str(probes),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        # 1 = it found something.
        assert done.returncode in (0, 1), done.stderr + done.stdout
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def _rlsgrid_config(self, database: Database, schema: str, iterations: int) -> Path:
        config = self.directory / "rlsgrid.toml"
        roles = "\n".join(f'{role} = "a tenant\'s login"' for role in database.probes[schema])
        config.write_text(
            f'[connection]\nurl = "{self._dsn(database, schema)}"\n'
            f'schema_search_path = ["{schema}"]\n'
            f"[roles]\n{roles}\n[fuzz]\niterations = {iterations}\nseed = 1\n"
        )
        return config

    def _place(self, database: Database, location: str) -> str:
        schema, _, rest = location.partition(".")
        return f"{database.title}/{database.schemas.get(schema, schema)}.{rest}".rstrip(".")

    def _named(self, database: Database, name: str) -> str:
        """`role schema.table OPERATION`, without opaque names."""
        role, place, operation = name.split(" ")
        title = role if role.startswith("tenancy_") else "login"
        return f"{self._place(database, place)} {operation} {title}"

    def _grid_place(self, database: Database, item: dict[str, Any]) -> str:
        name = f"{item['actor_role']} {item['schema']}.{item['table']} {item['operation']}"
        return self._named(database, name)


def _pgrls_config(database: Database, logins: Iterable[str]) -> str:
    """Ours is `tenancy.tenant()`, and whoever logs in for a tenant is trusted with nothing."""
    roles = json.dumps(["PUBLIC", "anon", *logins])
    schemas = json.dumps(list(database.schemas))
    functions = json.dumps(["current_setting", IDENTITY, "tenant"])
    lines = [f"[database]\nschemas = {schemas}"]
    lines += [
        f"[lint.rules.{rule}]\nauth_functions = {functions}"
        for rule in ("PERF001", "SEC026", "SEC030", "SEC035", "SEC038", "SEC040")
    ]
    lines += [
        f"[lint.rules.SEC004]\nauth_functions = {functions}\nanon_roles = {roles}",
        f"[lint.rules.SEC039]\nanon_roles = {roles}",
        f"[lint.rules.SEC042]\nanon_roles = {roles}",
        f"[lint.rules.SEC044]\ngrantees = {roles}",
        f"[lint.rules.SEC045]\ngrantees = {roles}",
        f"[lint.rules.SEC047]\nlow_trust_roles = {roles}",
    ]
    lines += [
        f"[lint.rules.{rule}]\nschemas = {schemas}\ngrantees = {roles}"
        for rule in ("SEC049", "SEC052", "SEC053", "SEC054")
    ]
    return "\n".join(lines) + "\n"


# Explanations


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Why a kind of finding is none. `place` and `detail` are patterns with `*`."""

    check: str
    rule: str
    place: str
    detail: str = "*"
    reason: str

    def covers(self, finding: Finding) -> bool:
        return (
            finding.check == self.check
            and finding.rule == self.rule
            and fnmatchcase(finding.place, self.place)
            and fnmatchcase(finding.detail, self.detail)
        )


def explanations() -> list[Explanation]:
    """What `explained.toml` says."""
    document = tomllib.loads((_ORACLES / "explained.toml").read_text())
    return [Explanation(**item) for item in document["finding"]]


def unexplained(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that nothing explains."""
    known = explanations()
    return sorted(item for item in findings if not any(each.covers(item) for each in known))


def idle(findings: Iterable[Finding], check: str) -> list[Explanation]:
    """Explanations for one check that explain none of its findings."""
    findings = list(findings)
    return [
        each
        for each in explanations()
        if each.check == check and not any(each.covers(item) for item in findings)
    ]


# The installation


@pytest.fixture(scope="session")
def oracles(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    """An installation with tenants at all levels over one schema; the engine is closed again."""
    if not (_BIN / "python").exists():
        pytest.fail("the checkers are not installed; run `make oracles`")
    directory = tmp_path_factory.mktemp("oracles")
    install = make_install(postgres_server, "tenancy_oracles", directory)
    placements = asyncio.run(_populate(install))
    schema, hybrid = placements["schema"], placements["hybrid"]
    assert hybrid.sensitive_schema is not None
    shared = Database(
        name=install.database,
        title="shared",
        schemas={
            "app": "app",
            "tenancy": "tenancy",
            "catalog": "catalog",
            "tenancy_reference": "tenancy_reference",
            "tenancy_trial": "tenancy_trial",
            schema.schema: "schema_level",
            hybrid.sensitive_schema: "overlay",
        },
        probes={
            "app": ("tenancy_rows", "tenancy_hybrid"),
            schema.schema: (schema.role,),
            hybrid.sensitive_schema: (hybrid.role,),
        },
        signed_as=install.database,
    )
    own = placements["database"]
    return Oracles(
        install=install,
        shared=shared,
        own=Database(
            name=own.database,
            title="own",
            schemas={name: name for name in ("app", "tenancy", "tenancy_reference")},
            probes={"app": (own.role,)},
            signed_as=own.database,
        ),
        logins=tuple(sorted({each.role for each in placements.values()} | {"tenancy_hybrid"})),
        directory=directory,
    )


async def _populate(install: Install) -> dict[str, Placement]:
    await bootstrap(install)
    placements = {}
    async with opened(install, tables=False) as engine:
        await engine.apply_migration("0001_neutral", (_ORACLES / "neutral.sql").read_text())
        for name, (level, hybrid) in _LEVELS.items():
            tenant = await engine.create_tenant(
                TenantContext(tenant_id=name), level=level, hybrid=hybrid
            )
            assert tenant.placement is not None
            placements[name] = tenant.placement
    # The probes want several tenants in each place.
    async with install.connected(database=placements["database"].database) as admin:
        for number in _ACTORS:
            await admin.execute("insert into tenancy.fence values ($1, 1, true)", number)
    return placements


async def copied(install: Install, source: Database, name: str, statements: str) -> None:
    """Copy a database and change something in the copy."""
    connection = await asyncpg.connect(install.server.admin_dsn)
    try:
        await connection.execute(f'create database "{name}" template "{source.name}"')
    finally:
        await connection.close()
    async with install.connected(database=name) as admin:
        await admin.execute(statements)
