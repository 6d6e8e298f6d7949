"""What the catalog says, held against what is there: pure rules."""

from __future__ import annotations

from typing import Any

from tenancy.data_isolation.core.move import MoveId, MoveState
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.leftovers import (
    ServerContents,
    create_command,
    leftover_findings,
    unplaced_findings,
)
from tenancy.data_isolation.engine.move_traces import KnownMove, KnownMoves

_ROLE = "t_" + "1" * 20
_NO_MOVES = KnownMoves()


def row(**given: Any) -> dict[str, Any]:
    return {
        "tenant_no": 5,
        "tenant_id": "acme",
        "tenant_type": "premium",
        "status": "active",
        "region": None,
        "compliance": [],
        "metadata": "{}",
        "age_s": 10_000.0,
        "level": "schema",
        "database": "tenancy",
        "schema": _ROLE,
        "role": _ROLE,
        "epoch": 3,
        "sensitive_schema": None,
    } | given


def login(**given: Any) -> dict[str, Any]:
    return {
        "name": _ROLE,
        "may_log_in": True,
        "connects_to": ["tenancy", "t_x"],
        "has_rights": True,
    } | given


def found(
    *placements: dict[str, Any], moves: KnownMoves = _NO_MOVES, **given: Any
) -> list[Finding]:
    contents: dict[str, Any] = {
        "server": "far",
        "shared": "tenancy",
        "catalog_server": "main",
        "catalog": "tenancy",
        "databases": ["tenancy", "tenancy_template"],
        "logins": [login()],
        "schemas": ["app", _ROLE],
        "overlays": [],
        "fences": {"tenancy": [{"tenant_no": 5, "epoch": 3, "open": True}]},
    }
    return list(
        leftover_findings(ServerContents(**(contents | given)), placements, moves, patience_s=600.0)
    )


def test_what_fits_has_no_finding():
    assert found(row()) == []


def test_what_changed_a_moment_ago_is_let_alone():
    assert found(row(status="creating", age_s=5.0), logins=[], schemas=["app"], fences={}) == []


def test_what_belongs_to_the_catalog_is_mended_on_the_first_server():
    (lost,) = found(row(), logins=[])
    assert (lost.server, lost.database, lost.by_hand) == ("main", "tenancy", True)
    assert lost.statements == (
        "update catalog.tenant set status = 'creating' "
        "where tenant_no = 5 and status in ('active', 'suspended')",
    )
    (half,) = found(row(status="deleting"))
    assert (half.server, half.advice) == ("main", "tenancy tenant erase acme --yes")
    (ahead,) = found(row(), fences={"tenancy": [{"tenant_no": 5, "epoch": 9, "open": True}]})
    assert ahead.server == "main"
    assert ahead.statements == ("update catalog.placement set epoch = 9 where tenant_no = 5",)


def test_a_login_that_does_not_get_in_is_let_in():
    (barred,) = found(row(), logins=[login(may_log_in=False)])
    assert (barred.server, barred.by_hand) == ("far", False)
    assert barred.statements == (f'alter role "{_ROLE}" login',)
    (shut,) = found(row(), logins=[login(connects_to=["t_x"])])
    assert "may not connect to database tenancy" in shut.problem
    assert shut.statements == (f'grant connect on database "tenancy" to "{_ROLE}"',)
    # A hybrid tenant's login connects by the right of its group.
    hybrid = row(level="row", schema="app", sensitive_schema=_ROLE)
    overlays = [{"tenant_no": 5, "schema": _ROLE}]
    assert found(hybrid, logins=[login(connects_to=[])], overlays=overlays) == []


def test_what_belongs_to_the_fence_is_mended_where_the_fence_is():
    (behind,) = found(row(), fences={"tenancy": [{"tenant_no": 5, "epoch": 2, "open": True}]})
    assert (behind.server, behind.statements) == (
        "far",
        ("update tenancy.fence set epoch = 3 where tenant_no = 5",),
    )
    (missing,) = found(row(), fences={"tenancy": []})
    assert missing.statements == (
        "insert into tenancy.fence (tenant_no, epoch, open) values (5, 3, true)",
    )


def test_a_database_that_was_not_entered_has_no_fences_to_miss():
    assert (
        found(
            row(level="database", database="t_x", role=_ROLE, schema="app"),
            databases=["tenancy", "t_x"],
            schemas=["app"],
            fences={},
        )
        == []
    )


def test_the_command_that_makes_a_tenant_anew_says_all_that_it_was_made_with():
    command = create_command(
        row(region="eu", compliance=["hipaa", "gdpr"], metadata='{"workload": "steady"}')
    )
    assert command == (
        "tenancy tenant create acme --type premium --level schema --region eu "
        '--compliance hipaa --compliance gdpr --metadata \'{"workload": "steady"}\''
    )
    hybrid = create_command(row(level="row", sensitive_schema=_ROLE))
    assert "--level" not in hybrid


def test_tenants_that_were_never_placed_are_told():
    unplaced = {name: value for name, value in row(status="creating").items() if name != "level"}
    (finding,) = unplaced_findings("main", "tenancy", [unplaced], patience_s=600.0)
    assert "has been creating for 167 minutes" in finding.problem
    assert finding.advice.endswith("or tenancy tenant erase acme --yes")


def test_an_entry_of_a_schema_that_is_neither_there_nor_wanted_is_forgotten():
    (finding,) = found(row(), unused=[("tenancy", "t_gone"), ("tenancy", _ROLE)])

    assert finding.statements == (
        "delete from catalog.namespace where (server, database, schema) = "
        "('far', 'tenancy', 't_gone')",
    )
    assert (finding.server, finding.database, finding.by_hand) == ("main", "tenancy", False)


def moving(state: MoveState, *, settled: bool = False, age_s: float = 10_000.0) -> KnownMoves:
    side = {"server": "far", "database": "tenancy", "schema": _ROLE, "role": _ROLE}
    target = {"server": "far", "database": "t_new", "schema": "t_new", "role": "t_new"}
    move = KnownMove(
        move_id=MoveId("m_" + "4" * 20),
        tenant_no=5,
        tenant_id="acme",
        state=state,
        settled=settled,
        error=None,
        wish=None,
        sides=(side, target),
        server="far",
        database="tenancy",
        epoch=3,
        age_s=age_s,
        open_s=None,
        owned=True,
    )
    return KnownMoves(moves=[move], patience_s=600.0)


def test_what_is_of_the_other_side_of_a_move_is_nobodys_orphan_until_it_is_settled():
    there: dict[str, Any] = {
        "databases": ["tenancy", "tenancy_template", "t_new"],
        "logins": [login(), login(name="t_new")],
        "fences": {
            "tenancy": [{"tenant_no": 5, "epoch": 3, "open": True}],
            "t_new": [{"tenant_no": 5, "epoch": 3, "open": False}],
        },
    }
    assert found(row(), moves=moving(MoveState.COPYING), **there) == []
    assert found(row(), moves=moving(MoveState.FAILED, settled=True, age_s=5.0), **there) == []
    over = found(row(), moves=moving(MoveState.FAILED, settled=True), **there)
    assert [finding.subject for finding in over] == [
        "role t_new",
        "database t_new",
        "fence of tenant number 5",
    ]


def test_a_closed_fence_is_left_to_a_move_that_can_have_closed_it():
    closed: dict[str, Any] = {"fences": {"tenancy": [{"tenant_no": 5, "epoch": 3, "open": False}]}}
    for state in (MoveState.CUTTING_OVER, MoveState.OPEN, MoveState.ROLLED_BACK):
        assert found(row(), moves=moving(state), **closed) == []
    (finding,) = found(row(), moves=moving(MoveState.COPYING), **closed)
    assert finding.problem == "is closed, and the tenant is active"
