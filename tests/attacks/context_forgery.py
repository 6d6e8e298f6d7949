"""C and I: becoming another tenant, and SQL that hides in strings."""

from __future__ import annotations

from attacks.attack import Attack, Goal, WeakLogin, WeakPool
from attacks.scene import CANARY, Scene
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.types import TenantContext

_READ = "select note from orders"


async def _stolen_binding(scene: Scene) -> bool:
    """The victim's binding, valid for the victim's own session."""
    async with scene.direct(scene.victim) as connection:
        stolen = await connection.fetchval(f"select current_setting('{scene.names['bind']}')")
        await scene.attack_in_turn([f"set {{bind}} = '{stolen}'", _READ])
    return False


async def _other_number(scene: Scene) -> bool:
    """The attacker's own binding, with the victim's number, epoch or key in it."""
    found = False
    for part, value in ((1, "{victim_value}"), (2, "7"), (0, "2")):
        pieces = scene.names["own"].split(".")
        if len(pieces) > 1:
            pieces[part] = value
        else:
            pieces = [value.replace("{victim_value}", "b")]
        answers = await scene.attack_in_turn([f"set {{bind}} = '{'.'.join(pieces)}'", _READ])
        found |= any(CANARY in text for answer in answers for text in answer.cells())
    return found


async def _poisoned_defaults(scene: Scene) -> bool:
    """Defaults of the login, for the sessions that the victim opens next."""
    await scene.attack_in_turn(
        [
            "alter role current_user set search_path = 'evil'",
            "alter role current_user set default_transaction_read_only = on",
            "alter role current_user set statement_timeout = 1",
        ]
    )
    try:
        return not await scene.serves_anew()
    finally:
        await scene.administrate(f"alter role {scene.attacker.role} reset all")


async def _hostile_names(scene: Scene) -> bool:
    """Names of tenants that are SQL when they are put into a statement."""
    name = 'a"; drop table public.orders cascade; --'
    if scene.is_weak:
        await scene.attack(f'set search_path = "tenant_{name}"')
        return not await scene.administrate("select from pg_class where relname = 'orders'")
    try:
        TenantContext(tenant_id=name)
    except InvalidInputError as error:
        scene.note_error(error)
        return False
    return True


ATTACKS = (
    Attack(
        id="C01",
        title="the tenant is set by SET",
        goal=Goal.READ,
        steps=["set {bind} = '{forged}'", _READ],
    ),
    Attack(
        id="C01",
        variant="stolen",
        title="the victim's own binding is replayed",
        goal=Goal.READ,
        play=_stolen_binding,
    ),
    Attack(
        id="C01",
        variant="altered",
        title="tenant, epoch or key of a valid binding are altered",
        goal=Goal.READ,
        play=_other_number,
    ),
    Attack(
        id="C02",
        title="set_config inside of one SELECT",
        goal=Goal.READ,
        steps=["select note from orders where set_config('{bind}', '{forged}', true) is not null"],
        # The policy must ask for the setting row by row.
        weakness=[
            "alter policy tenant on orders using (tenant = current_setting('app.tenant', true))"
        ],
    ),
    Attack(
        id="C02",
        variant="from",
        title="set_config in FROM",
        goal=Goal.READ,
        steps=[
            "select o.note from (select set_config('{bind}', '{forged}', false) offset 0) s, "
            "lateral (select note from orders where s.set_config is not null) o",
            _READ,
        ],
    ),
    Attack(
        id="C03",
        title="a second statement in a text without parameters",
        goal=Goal.READ,
        steps=[
            "select * from orders where note = '';"
            " select set_config('{bind}', '{forged}', false) --'",
            _READ,
        ],
    ),
    Attack(
        id="C04",
        title="COMMIT ends what was set for the transaction",
        goal=Goal.READ,
        steps=["begin", "set local role {own_role}", "commit", _READ],
        weak_as=WeakLogin.OWNER,
        weakness=["alter table orders no force row level security"],
    ),
    Attack(
        id="C05",
        title="SET ROLE to the victim's role",
        goal=Goal.READ,
        steps=["set role {victim_role}", "select note from {by_role}"],
    ),
    Attack(
        id="C05",
        variant="reset",
        title="RESET ROLE to a login that can do more",
        goal=Goal.READ,
        steps=["set role {own_role}", "reset role", _READ],
        weak_as=WeakLogin.OWNER,
        weakness=["alter table orders no force row level security"],
    ),
    Attack(
        id="C06",
        title="set_config('role') in a SELECT",
        goal=Goal.READ,
        steps=[
            "select set_config('role', '{victim_role}', false)",
            "select note from {by_role}",
        ],
    ),
    Attack(
        id="C07",
        title="SET SESSION AUTHORIZATION",
        goal=Goal.READ,
        steps=["set session authorization {victim_role}", "select note from {by_role}"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="C08",
        title="defaults of the login",
        goal=Goal.HINDER,
        play=_poisoned_defaults,
    ),
    Attack(
        id="C09",
        title="defaults of the login, from under another role",
        goal=Goal.RUN,
        steps=[
            "set role {own_role}",
            "reset role",
            "alter role {victim_login} set statement_timeout = 1",
            "alter role {victim_login} reset statement_timeout",
        ],
        accepted={
            "row/direct": "login-defaults",
            "row/handed": "login-defaults",
        },
    ),
    Attack(
        id="C10",
        title="SET LOCAL outside of a transaction leaves the last tenant's in force",
        goal=Goal.READ,
        before=["select 1"],
        steps=["set local {bind} = '{own}'", _READ],
        weak_pool=WeakPool.LOCAL,
    ),
    Attack(
        id="C11",
        title="after COMMIT the setting is empty, not null",
        goal=Goal.READ,
        steps=["reset {bind}", "begin", "set local {bind} = '{own}'", "commit", _READ],
        weakness=["insert into orders values (9, '', null, '{canary} of nobody')"],
    ),
    Attack(
        id="C12",
        title="ROLLBACK brings the last tenant's setting back",
        goal=Goal.READ,
        before=["select note from orders limit 1"],
        steps=["rollback", _READ, "select 1/0", _READ],
        weak_pool=WeakPool.IN_TRANSACTION,
    ),
    Attack(
        id="C12",
        variant="savepoint",
        title="ROLLBACK TO brings the last tenant's setting back",
        goal=Goal.READ,
        before=["select note from orders limit 1"],
        steps=["begin", "savepoint s", "select 1", "rollback to s", _READ, "rollback", _READ],
        weak_pool=WeakPool.IN_TRANSACTION,
    ),
    Attack(
        id="C13",
        title="a setting that says that everything may be seen",
        goal=Goal.READ,
        steps=["set app.is_admin = 'true'", _READ],
        weakness=[
            "create policy admin on orders using (current_setting('app.is_admin', true) = 'true')"
        ],
    ),
    Attack(
        id="C14",
        title="DO changes the role",
        goal=Goal.READ,
        steps=[
            "do $$ begin execute 'set role {victim_role}'; end $$",
            "select note from {by_role}",
        ],
    ),
    Attack(
        id="I01",
        title="SQL in the argument of a function",
        goal=Goal.READ,
        # As query_to_xml and the like do, but without the need for XML in the server.
        steps=[
            "select * from ts_stat("
            "'select to_tsvector(set_config(''{bind}'', ''{forged}'', false))')",
            _READ,
        ],
    ),
    Attack(
        id="I02",
        title="the name of a tenant is SQL",
        goal=Goal.CHANGE,
        play=_hostile_names,
        one_way=True,
        weak_as=WeakLogin.OWNER,
    ),
)
