"""What the catalog says, held against what is there: pure rules."""

from __future__ import annotations

from typing import Any

from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.leftovers import (
    ServerContents,
    create_command,
    leftover_findings,
    unplaced_findings,
)
from tenancy.data_isolation.engine.move_traces import KnownMoves

_ROLE = "t_" + "1" * 20


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


def found(*placements: dict[str, Any], **given: Any) -> list[Finding]:
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
        leftover_findings(
            ServerContents(**(contents | given)), placements, KnownMoves(), patience_s=600.0
        )
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
