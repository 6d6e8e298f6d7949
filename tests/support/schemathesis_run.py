"""Schemathesis, in an environment of its own, against the OpenAPI document of an installation.

`make .venv-schemathesis/.installed` makes the environment, from the versions in
`tests/schemathesis-requirements.txt`.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
PROGRAM = _ROOT / ".venv-schemathesis" / "bin" / "st"
_CONFIGURATION = _ROOT / "tests" / "schemathesis.toml"

#: What takes away the credentials and tenants of whoever else uses the same installation.
DESTRUCTIVE = (
    "revoke_v1_keys__key_id__delete",
    "rotate_v1_keys__key_id__rotate_post",
    "delete_v1_tenants__tenant_id__delete",
    "suspend_v1_tenants__tenant_id__suspend_post",
    "migrate_v1_schema_migrations_post",
    "start_v1_tenants__tenant_id__moves_post",
    "accept_v1_proposals__proposal_id__accept_post",
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run said. `passed` = no check failed."""

    passed: bool
    report: str


def check_document(
    url: str,
    credential: str,
    *,
    document: str | None = None,
    options: Sequence[str] = (),
    excluded: Sequence[str] = (),
    timeout_s: float,
) -> Found:
    """Send what the document at `url` allows and forbids, and hold the answers against it.

    `document` is a file to use in its place.
    """
    given = [f"{url}/openapi.json"] if document is None else [document, "--url", url]
    command = [
        *(str(PROGRAM), "--config-file", str(_CONFIGURATION), "run", *given),
        *("--header", f"Authorization: Bearer {credential}"),
        *("--continue-on-failure", "--no-color", "--warnings", "off"),
        *options,
        *(part for name in excluded for part in ("--exclude-operation-id", name)),
    ]
    # It remembers failures in the directory where it runs, and would try them again the next time.
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    return Found(passed=done.returncode == 0, report=done.stdout + done.stderr)
