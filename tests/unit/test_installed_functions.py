"""What the runtime's own functions must be is read from the files that install them."""

from __future__ import annotations

import re

from tenancy.data_isolation.engine.installation import STEPS
from tenancy.data_isolation.engine.installed_functions import (
    _DEPARSED,
    _functions,
    release_functions,
    release_triggers,
)

_STEPS = [step for steps in STEPS.values() for step in steps]
_FILES = tuple((step.file.filename, step.statement) for step in _STEPS)


def test_every_function_and_trigger_of_every_step_is_understood():
    texts = [step.file.statement(step.statement) for step in _STEPS]
    made = [
        name
        for text in texts
        for name in re.findall(r"create (?:or replace )?function ([\w.]+)\(", text)
    ]
    triggers = [name for text in texts for name in re.findall(r"create trigger (\w+)", text)]

    functions = release_functions(_FILES)

    assert set(functions) == set(made)
    assert {name for _, name in release_triggers(_FILES)} == set(triggers)
    for function in functions.values():
        # A body in SQL syntax is compared as PostgreSQL writes it.
        assert (function.body is None) == (function.name in _DEPARSED), function.name
        assert function.mend.startswith("create or replace function tenancy.") or (
            function.mend.startswith("create or replace function catalog.")
        )


def test_tenant_is_what_the_boundary_rests_on():
    tenant = release_functions(_FILES)["tenancy.tenant"]

    assert tenant.security_definer
    assert (tenant.language, tenant.volatility, tenant.parallel) == ("plpgsql", "v", "r")
    assert tenant.settings == ()
    assert tenant.body is not None
    assert "tenancy.binding_key" in tenant.body


def test_options_behind_the_body_count_and_the_last_of_a_name_wins():
    (one,) = _functions(
        "create function tenancy.f(a numeric(1, 2), b text) returns table (x int) as $of$ "
        "select '$$;' $of$ language sql stable strict set work_mem = '1MB' parallel safe;\n"
    )

    assert (one.language, one.volatility, one.parallel, one.strict) == ("sql", "s", "s", True)
    assert one.body == " select '$$;' "
