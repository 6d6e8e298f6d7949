"""The choice of a strategy: what the built-in rules give, and what the evaluation holds to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import IsolationLevel, TenantContext, TenantType
from tenancy.data_isolation.core.choice import choose
from tenancy.data_isolation.core.errors import ConflictError, InvalidInputError, SettingError
from tenancy.data_isolation.core.rules import (
    STRATEGY_OF_LEVEL,
    Budget,
    Facts,
    Latency,
    StrategyName,
    Workload,
    strength,
)
from tenancy.data_isolation.core.rules_file import read_rules

RULES = Path(__file__).parents[2] / "strategies" / "rules.toml"
BOOK = read_rules(RULES.read_text(), "rules.toml")
PLACEMENTS = tuple(STRATEGY_OF_LEVEL.values())
ROW, SCHEMA, DATABASE = IsolationLevel
ONE_RULE = '[[rules]]\nname = "a"\nbecause = "b"\n'


def chosen(**facts) -> str:
    return choose(BOOK, Facts(**facts), available=PLACEMENTS).strategy


def rules(text: str):
    return read_rules(text, "mine.toml", defaults=BOOK)


def complaint(text: str) -> str:
    with pytest.raises(SettingError) as caught:
        rules(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("facts", "strategy"),
    [
        ({}, "row_level"),
        ({"tenant_type": TenantType.FREE}, "row_level"),
        ({"tenant_type": TenantType.PREMIUM}, "schema_level"),
        ({"tenant_type": TenantType.ENTERPRISE}, "schema_level"),
        ({"compliance": ("hipaa",)}, "database_level"),
        ({"compliance": ("pci_dss",), "tenant_type": TenantType.FREE}, "database_level"),
        ({"compliance": ("sox", "gdpr")}, "database_level"),
        ({"compliance": ("gdpr",)}, "schema_level"),
        ({"size_rows": 2e7}, "schema_level"),
        ({"size_rows": 2e6}, "row_level"),
        ({"size_bytes": 6e11}, "database_level"),
        ({"load_ops_s": 800}, "schema_level"),
        ({"load_ops_s": 8_000}, "database_level"),
        ({"load_ops_s": 8_000, "budget": Budget.MEDIUM}, "schema_level"),
        ({"load_ops_s": 8_000, "budget": Budget.LOW}, "row_level"),
        ({"load_ops_s": 8_000, "databases": 200}, "schema_level"),
        ({"load_ops_s": 8_000, "databases": 199}, "database_level"),
        ({"compliance": ("hipaa",), "budget": Budget.LOW}, "database_level"),
        ({"compliance": ("hipaa",), "databases": 500}, "database_level"),
        ({"required_security": 4}, "schema_level"),
        ({"required_security": 5}, "database_level"),
        ({"tenant_type": TenantType.PREMIUM, "required_latency": Latency.VERY_LOW}, "row_level"),
        ({"wish": DATABASE}, "database_level"),
        ({"wish": ROW, "tenant_type": TenantType.ENTERPRISE}, "row_level"),
        ({"wish": DATABASE, "budget": Budget.LOW}, "database_level"),
        ({"placement": SCHEMA}, "schema_level"),
    ],
)
def test_the_built_in_rules_give(facts, strategy):
    assert chosen(**facts) == strategy


@pytest.mark.parametrize(
    ("strategy", "row"),
    [
        ("database_level", ("medium", 5, 2, 2)),
        ("schema_level", ("low", 4, 4, 4)),
        ("row_level", ("very low", 3, 5, 5)),
        ("hybrid", ("low", 4, 5, 4)),
        ("ai_driven", ("variable", 4, 5, 3)),
        ("blockchain_security", ("high", 5, 3, 2)),
        ("edge_computing", ("ultra low", 4, 5, 3)),
        ("event_driven", ("ultra low", 4, 5, 4)),
    ],
)
def test_the_matrix_is_the_specified_one(strategy, row):
    item = BOOK.profiles[StrategyName(strategy)]

    assert (item.latency, item.security, item.scalability, item.cost) == row


@pytest.mark.parametrize("workload", ["dynamic", "analytics", "audit", "streaming", "global"])
def test_a_wanted_strategy_that_does_not_exist_falls_to_the_next_best_and_says_so(workload):
    wanted = {
        "dynamic": "hybrid",
        "analytics": "ai_driven",
        "audit": "blockchain_security",
        "streaming": "event_driven",
        "global": "edge_computing",
    }[workload]
    facts = Facts(workload=Workload(workload))

    now = choose(BOOK, facts, available=PLACEMENTS)
    later = choose(BOOK, facts, available=(*PLACEMENTS, StrategyName(wanted)))

    assert now.strategy in PLACEMENTS
    assert any(
        text.startswith(f"{wanted} was passed over: it does not exist") for text in now.reasons
    )
    assert later.strategy == wanted
    assert later.level is now.level


def test_a_layer_takes_the_level_that_compliance_demands():
    facts = Facts(workload=Workload.STREAMING, compliance=("hipaa",))
    choice = choose(BOOK, facts, available=(*PLACEMENTS, StrategyName.EVENT_DRIVEN))

    assert (choice.strategy, choice.level) == ("event_driven", DATABASE)


def test_reasons_name_the_rule_its_facts_and_what_was_considered():
    choice = choose(BOOK, Facts(compliance=("hipaa",)), available=PLACEMENTS)
    text = "\n".join(choice.reasons)

    assert choice.rules[0] == "regulated data"
    assert "Rule 'regulated data' applies (compliance hipaa): at least level database." in text
    assert "row_level was passed over: it does not meet: at least level database" in text
    assert set(choice.considered) == set(PLACEMENTS)


def test_a_demand_that_gives_way_is_told():
    choice = choose(BOOK, Facts(compliance=("hipaa",), budget=Budget.LOW), available=PLACEMENTS)

    assert [text for text in choice.reasons if text.startswith("Set aside")] == [
        "Set aside, because nothing that exists fits it too: cost rating 5 or more (5 is cheapest) "
        "(rule 'low budget')."
    ]


def test_only_what_stands_in_the_way_is_set_aside():
    facts = Facts(compliance=("gdpr",), budget=Budget.LOW, required_latency=Latency.LOW)
    choice = choose(BOOK, facts, available=PLACEMENTS)

    assert sum(text.startswith("Set aside") for text in choice.reasons) == 1
    assert choice.strategy == "schema_level"


@pytest.mark.parametrize(
    "facts",
    [
        Facts(wish=ROW, compliance=("hipaa",)),
        Facts(wish=ROW, required_security=5),
        Facts(placement=ROW, wish=SCHEMA),
        Facts(compliance=("hipaa",), databases=2_000),
    ],
)
def test_firm_demands_that_contradict_each_other_are_a_conflict_that_names_them(facts):
    with pytest.raises(ConflictError, match="it does not meet"):
        choose(BOOK, facts, available=PLACEMENTS)


def test_without_compliance_validation_a_wish_counts_for_more_than_a_rule():
    facts = Facts(wish=ROW, compliance=("hipaa",))
    choice = choose(BOOK, facts, available=PLACEMENTS, compliance_validation=False)

    assert choice.level is ROW
    assert any("Set aside" in text and "regulated data" in text for text in choice.reasons)


def test_the_fallback_takes_the_place_of_one_that_does_not_exist():
    facts = Facts(workload=Workload.STREAMING)
    choice = choose(BOOK, facts, available=PLACEMENTS, fallback=StrategyName.DATABASE_LEVEL)

    assert choice.strategy == "database_level"


def test_a_fallback_that_is_too_weak_is_passed_over():
    facts = Facts(workload=Workload.STREAMING, compliance=("hipaa",))
    choice = choose(BOOK, facts, available=PLACEMENTS, fallback=StrategyName.ROW_LEVEL)

    assert choice.strategy == "database_level"


def test_the_fallback_does_not_replace_a_strategy_that_can_be_used():
    choice = choose(BOOK, Facts(), available=PLACEMENTS, fallback=StrategyName.DATABASE_LEVEL)

    assert choice.strategy == "row_level"


LEVELS = st.none() | st.sampled_from(IsolationLevel)


@given(
    st.builds(
        Facts,
        tenant_type=st.sampled_from(TenantType),
        compliance=st.sets(st.sampled_from(BOOK.regimes()), max_size=3).map(tuple),
        wish=LEVELS,
        size_rows=st.none() | st.floats(0, 1e9),
        load_ops_s=st.none() | st.floats(0, 1e5),
        workload=st.none() | st.sampled_from(Workload),
        budget=st.none() | st.sampled_from(Budget),
        required_security=st.none() | st.integers(1, 5),
        required_latency=st.none() | st.sampled_from(Latency),
        databases=st.integers(0, 3_000),
    ),
    st.sets(st.sampled_from(list(BOOK.profiles))).map(lambda more: more | set(PLACEMENTS)),
)
def test_no_choice_is_below_the_compliance_besides_the_wish_or_of_a_missing_strategy(facts, names):
    try:
        choice = choose(BOOK, facts, available=tuple(names))
    except ConflictError:
        return
    demand = BOOK.demand(facts)
    assert demand is None or strength(choice.level) >= strength(demand[0])
    assert facts.wish in (None, choice.level)
    assert choice.strategy in names
    assert choice.reasons
    assert choice == choose(BOOK, facts, available=tuple(names))


# Facts


def test_facts_come_from_the_context_and_its_metadata():
    context = TenantContext(
        tenant_id="acme",
        tenant_type="premium",
        compliance=["PCI-DSS", "iso 27001"],
        metadata={
            "size_rows": 5,
            "load_ops_s": 1.5,
            "workload": "audit",
            "required_latency": "very_low",
            "colour": object(),
        },
    )

    facts = Facts.of(context, databases=3, operation="create_user")

    assert facts.compliance == ("iso_27001", "pci_dss")
    assert (facts.size_rows, facts.load_ops_s, facts.databases) == (5, 1.5, 3)
    assert (facts.workload, facts.required_latency) == (Workload.AUDIT, Latency.VERY_LOW)
    assert facts.operation == "create_user"


@pytest.mark.parametrize(
    "metadata",
    [
        {"size_rows": "many"},
        {"size_bytes": -1},
        {"load_ops_s": float("nan")},
        {"load_ops_s": True},
        {"workload": "jazz"},
        {"budget": 7},
        {"required_security": 6},
        {"required_latency": "soon"},
    ],
)
def test_a_fact_that_means_nothing_is_refused_by_name(metadata):
    with pytest.raises(InvalidInputError, match=next(iter(metadata))):
        Facts.of(TenantContext(tenant_id="acme", metadata=metadata))


def test_a_rule_does_not_apply_when_its_number_is_not_known():
    book = rules(ONE_RULE + 'when = { size_rows_max = 10 }\nat_least = "schema"\n')

    assert choose(book, Facts(), available=PLACEMENTS).level is ROW
    assert choose(book, Facts(size_rows=10), available=PLACEMENTS).level is SCHEMA
    assert choose(book, Facts(size_rows=11), available=PLACEMENTS).level is ROW


def test_a_rule_may_look_at_the_operation():
    book = rules(ONE_RULE + 'when = { operation = "stream_event" }\nprefer = ["schema_level"]\n')

    assert choose(book, Facts(operation="stream_event"), available=PLACEMENTS).level is SCHEMA
    assert choose(book, Facts(operation="get_user"), available=PLACEMENTS).level is ROW


# Files


def test_a_file_without_a_matrix_keeps_the_built_in_one():
    book = rules(ONE_RULE + 'prefer = ["database_level"]\n')

    assert choose(book, Facts(), available=PLACEMENTS).strategy == "database_level"
    assert book.profiles == BOOK.profiles


def test_a_mapping_of_the_same_shape_is_as_good_as_a_file():
    item = {"name": "a", "because": "b", "prefer": ["schema_level"]}
    book = read_rules({"rules": [item]}, "OrchestratorConfig.rules", defaults=BOOK)

    assert choose(book, Facts(), available=PLACEMENTS).strategy == "schema_level"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[strategies.rowlevel]\n", "line 1: strategies does not know 'rowlevel'"),
        ("[matrix]\n", "line 1: matrix is not a key of the file"),
        (ONE_RULE + 'at_least = "shelf"\n', "line 4: rule 1, at_least does not know 'shelf'"),
        (ONE_RULE + 'prefer = [\n  "row"]\n', "line 4: rule 1, prefer does not know 'row'"),
        (ONE_RULE + 'prefers = ["row_level"]\n', "line 4: rule 1, prefers is not a key"),
        (ONE_RULE + "when = { compliance = [] }\ncost_at_least = 3\n", "line 4: rule 1, when.comp"),
        (ONE_RULE + "when = { size_min = 3 }\ncost_at_least = 3\n", "line 4: rule 1, size_min"),
        (ONE_RULE + 'when = { size_rows_min = "3" }\ncost_at_least = 3\n', "rule 1, when.size_row"),
        (ONE_RULE + 'when = { budget = "big" }\ncost_at_least = 3\n', "does not know 'big'"),
        (ONE_RULE + "cost_at_least = 6\n", "line 4: rule 1, cost_at_least must be a whole number"),
        (ONE_RULE + 'firm = "yes"\ncost_at_least = 3\n', "line 4: rule 1, firm must be true"),
        (ONE_RULE, "line 1: rule 1, rules says nothing"),
        ('[[rules]]\nname = "a"\ncost_at_least = 3\n', "line 1: rule 1, because must be a text"),
        (2 * (ONE_RULE + "cost_at_least = 3\n"), "line 6: rule 2, name 'a' is used twice"),
        (
            ONE_RULE + 'prefer = ["analytics_driven"]\n',
            "line 4: rule 1, prefer names analytics_driv",
        ),
        ('[strategies.hybrid]\nuse_case = "x"\nlatency = "low"\n', "hybrid.security is missing"),
        ("rules = 3\n", "line 1: rules must be a list of tables"),
        ("[[rules]\n", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_line_and_the_key(text, place):
    told = complaint(text)

    assert told.startswith("mine.toml")
    assert place in told


def test_a_file_that_leaves_out_a_placement_strategy_needs_the_built_in_matrix():
    with pytest.raises(SettingError, match="lacks row_level, schema_level, database_level"):
        read_rules("", "mine.toml")
