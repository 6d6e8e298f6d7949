"""All attacks, and where those are tried that are no SQL."""

from __future__ import annotations

from typing import Final

from attacks import (
    context_forgery,
    covert_channels,
    definer_rights,
    denial,
    other_places,
    residue,
    row_security,
)
from attacks.attack import Attack

ATTACKS: Final[tuple[Attack, ...]] = (
    *context_forgery.ATTACKS,
    *row_security.ATTACKS,
    *definer_rights.ATTACKS,
    *covert_channels.ATTACKS,
    *residue.ATTACKS,
    *other_places.ATTACKS,
    *denial.ATTACKS,
)

#: Attacks of the catalogue that are no SQL of a tenant's: what they are, and who tries them.
ELSEWHERE: Final[dict[str, tuple[str, str]]] = {
    "A01": (
        "a header that names another tenant",
        "tests/integration/test_attacks_by_name.py"
        "::test_a01_no_header_but_the_credential_says_who_asks",
    ),
    "A02": (
        "a token that is forged, stretched or confused",
        "tests/integration/test_attacks_with_tokens.py"
        "::test_a02_forged_and_stretched_tokens_are_refused",
    ),
    "A03": (
        "a token of one tenant on the path of another",
        "tests/integration/test_attacks_with_tokens.py"
        "::test_a03_a_token_for_one_tenant_on_the_path_of_another_finds_nothing",
    ),
    "A04": (
        "numbers and spellings that might lead to a tenant",
        "tests/integration/test_attacks_by_name.py"
        "::test_a03_a04_numbers_and_spellings_lead_to_no_tenant",
    ),
    "A05": (
        "an answer that was kept for another tenant",
        "tests/integration/test_attacks_by_name.py"
        "::test_a05_the_same_question_of_two_tenants_has_two_answers",
    ),
    "A06": (
        "the tenant is lost, or taken from the context, across tasks and threads",
        "tests/integration/test_attacks_above.py"
        "::test_a_tenant_is_named_by_each_call_and_not_by_where_it_runs",
    ),
    "A07": (
        "an actor that is found by its name",
        "tests/acceptance/test_exposure.py::test_a07_without_the_token_nobody_joins_the_cluster",
    ),
    "A08": (
        "a pickle among the parameters",
        "tests/integration/test_attacks_above.py::test_what_a_tenant_sends_is_never_unpickled",
    ),
    "A09": (
        "a statement that races a cutover",
        "tests/integration/test_binding.py"
        "::test_a_statement_that_waited_for_a_drain_meets_the_closed_fence",
    ),
    "A10": (
        "logs, errors and figures that tell of others",
        "tests/acceptance/test_leakage.py::test_logs_and_files_hold_nothing_of_it",
    ),
    "A11": (
        "names of tenants that answers or their time give away",
        "tests/integration/test_attacks_by_name.py"
        "::test_a11_no_route_tells_another_tenant_from_one_that_does_not_exist",
    ),
    "A12": (
        "an export with rows of others in it",
        "tests/integration/test_export.py"
        "::test_every_kind_of_key_comes_out_whole_and_the_same_at_every_level",
    ),
    "A14": (
        "a tenant's data leaves its region: by a move, which its plan refuses (there are no "
        "replicas; logs and figures hold no rows, A10)",
        "tests/integration/test_moves.py::test_what_cannot_be_is_refused_before_anything_is_made",
    ),
}

#: Attacks of the catalogue that there is nothing to try for, with the reason.
NOT_APPLICABLE: Final[dict[str, str]] = {
    "P08": (
        "A pooler in transaction mode, in front of PostgreSQL, gives a session to many. The "
        "runtime has pools of its own and needs none; behind such a pooler it does not work, and "
        "does not leak either: a binding is signed for one server process."
    ),
    "B05": (
        "Dumps that are restored by a superuser run what tenants put into them. The runtime dumps "
        "and restores nothing: an export is rows as JSON, a hybrid tenant's tables are copied by "
        "INSERT."
    ),
    "A13": "There is no audit ledger yet that could be cut off or reordered.",
}
