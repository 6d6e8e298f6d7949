"""S and B: other tenants' schemas and databases."""

from __future__ import annotations

import asyncpg

from attacks.attack import Attack, Goal, WeakLogin
from attacks.scene import Scene

_LONG = "a" * 60


async def _other_database(scene: Scene) -> bool:
    """A connection to the victim's database, or to the template, with the attacker's login."""
    if scene.is_weak:
        places = ["postgres", scene.stage.prefix]
    else:
        own = scene.attacker.database
        places = [
            name
            for name in (scene.victim.database, f"{scene.names['shared_database']}_template")
            if name != own
        ]
    entered = False
    for place in places:
        try:
            async with scene.direct(scene.attacker, place) as connection:
                scene.note_rows(await connection.fetch("select current_database()"))
                entered = True
        except asyncpg.PostgresError as error:
            scene.note_error(error)
    return entered


async def _same_place(scene: Scene, first: str, second: str) -> bool:
    """Two tenants whose names become one when they are made into a name of PostgreSQL's."""
    if scene.is_weak:
        for name in (first, second):
            place = "tenant_" + name.replace("-", "_")
            await scene.administrate(f'create schema if not exists "{place}"')
        made = await scene.administrate(
            "select quote_ident(nspname) from pg_namespace where nspname like 'tenant\\_%'"
        )
        for row in made:
            await scene.administrate(f"drop schema {row[0]}")
        return len(made) == 1
    places = await scene.places_of([first, second])
    scene.note_rows((place,) for place in places)
    return len(places) < 2


async def _cut_names(scene: Scene) -> bool:
    """Names that differ only behind the 63rd byte of the name that is made of them."""
    return await _same_place(scene, f"{_LONG}-x", f"{_LONG}-y")


async def _folded_names(scene: Scene) -> bool:
    """Names that differ only in a character that is replaced."""
    return await _same_place(scene, "some-shop", "some_shop")


async def _let_in(scene: Scene) -> bool:
    """GRANT by somebody who may not is a warning, not an error: the effect counts."""
    await scene.attack("grant create on database {own_database} to public")
    given = await scene.administrate(
        "select from pg_database cross join lateral aclexplode(datacl) a "
        "where datname = current_database() and a.grantee = 0 and privilege_type = 'CREATE'"
    )
    return bool(given)


ATTACKS = (
    Attack(
        id="S01",
        title="a qualified name",
        goal=Goal.READ,
        steps=[
            'select note from "{victim_schema}".{victim_table}',
            "select note from {victim_schema}.orders",
        ],
        weakness=["alter table orders disable row level security"],
    ),
    Attack(
        id="S01",
        variant="write",
        title="a qualified name in a write",
        goal=Goal.CHANGE,
        steps=[
            "update \"{victim_schema}\".{victim_table} set note = note || '!'",
            'delete from "{victim_schema}".{victim_table}',
        ],
        weakness=["alter table orders disable row level security"],
    ),
    Attack(
        id="S02",
        title="a search_path whose schema is missing falls through to the shared one",
        goal=Goal.READ,
        steps=["set search_path = missing, public", "select note from plain_orders"],
        weakness=[
            "create table plain_orders as select note from orders;"
            "grant select on plain_orders to public;"
        ],
    ),
    Attack(
        id="S02",
        variant="write",
        title="a write falls through to the shared schema",
        goal=Goal.RUN,
        steps=[
            "set search_path = missing, public",
            "insert into plain_orders values ('mine')",
        ],
        weakness=["create table plain_orders (note text); grant insert on plain_orders to public;"],
    ),
    Attack(
        id="S03",
        title="names that are cut off become one",
        goal=Goal.RUN,
        play=_cut_names,
        one_way=True,
    ),
    Attack(
        id="S04",
        title="names that are folded become one",
        goal=Goal.RUN,
        play=_folded_names,
        one_way=True,
    ),
    Attack(
        id="S05",
        title="a table that the tenant's schema lacks is found in the shared one",
        goal=Goal.READ,
        steps=["select note from late_orders"],
        setting_up=[
            "create table public.late_orders as select '{canary}'::text as note",
        ],
        clearing_up=["drop table public.late_orders"],
        weakness=[
            "create table late_orders as select note from orders;"
            "grant select on late_orders to public;"
        ],
    ),
    Attack(
        id="B01",
        title="another database lets everybody in",
        goal=Goal.RUN,
        play=_other_database,
        one_way=True,
        weakness=["grant connect on database {p} to public"],
    ),
    Attack(
        id="B01",
        variant="temp",
        title="everybody may make temporary tables",
        goal=Goal.RUN,
        steps=["create temp table mine (a int)"],
    ),
    Attack(
        id="B02",
        title="catalogs of the cluster list databases and roles by the tenants' names",
        goal=Goal.LEARN,
        steps=[
            "select datname, shobj_description(oid, 'pg_database') from pg_database",
            "select rolname, shobj_description(oid, 'pg_authid') from pg_roles",
        ],
        weakness=["comment on role {p}_b is 'victim'"],
    ),
    Attack(
        id="B03",
        title="dblink and postgres_fdw lead back to the server",
        goal=Goal.RUN,
        steps=["create extension if not exists dblink"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="B04",
        title="who owns the database lets others in",
        goal=Goal.RUN,
        play=_let_in,
        weak_as=WeakLogin.OWNER,
        weakness=["alter database {p} owner to {p}_owner"],
    ),
    Attack(
        id="B06",
        title="a publication copies rows past row security",
        goal=Goal.RUN,
        steps=["create publication loot for table orders"],
        weak_as=WeakLogin.OWNER,
        weakness=["grant create on database {p} to {p}_owner"],
    ),
    Attack(
        id="B07",
        title="a replication slot",
        goal=Goal.RUN,
        steps=["select pg_create_physical_replication_slot('evil', false, true)"],
        weak_as=WeakLogin.BOSS,
    ),
)
