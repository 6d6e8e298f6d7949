"""The served OpenAPI document against what is served, by Schemathesis.

A short and always equal run. `make schemathesis` makes a long one with other requests each time, on
an installation of its own, which also takes what would disturb the other tests here.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from support.installation import Installation
from support.schemathesis_run import DESTRUCTIVE, PROGRAM, check_document

pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="`make acceptance` installs Schemathesis"),
    pytest.mark.timeout(300),
]
_SHORT = ("--generation-deterministic", "--max-examples", "5")


@pytest.mark.parametrize("who", ["admin", "acme"])
def test_no_answer_is_another_than_the_document_says(installation: Installation, who: str):
    found = check_document(
        str(installation.url),
        installation.keys[who],
        options=_SHORT,
        excluded=DESTRUCTIVE if who == "admin" else (),
        timeout_s=200,
    )

    assert found.passed, found.report
    assert "No issues found" in found.report


def test_an_answer_that_the_document_does_not_have_is_found(
    installation: Installation, tmp_path: Path
):
    document = httpx.get(f"{installation.url}/openapi.json", trust_env=False).json()
    path = "/v1/tenants/{tenant_id}"
    document["paths"] = {path: {"get": document["paths"][path]["get"]}}
    del document["paths"][path]["get"]["responses"]["404"]
    changed = tmp_path / "openapi.json"
    changed.write_text(json.dumps(document))

    found = check_document(
        str(installation.url),
        installation.keys["admin"],
        document=str(changed),
        options=_SHORT,
        timeout_s=100,
    )

    assert not found.passed
    assert "Undocumented status code" in found.report, found.report
