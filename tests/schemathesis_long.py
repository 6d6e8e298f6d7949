"""A long run of Schemathesis, with every operation and each kind of credential.

It starts an installation of its own, since an administrator may erase tenants and revoke keys.
Exits with 1 when a check failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from support.runtime import Runtime, ended
from support.schemathesis_run import DESTRUCTIVE, check_document

_TABLE = "create table users (id bigint primary key, email text not null unique)"


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=240, help="of all runs together")
    parser.add_argument(
        "--seed", type=int, help="of the requests; another one each time if not given"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runtime = Runtime(Path(directory) / "home")
        with ended(runtime):
            runtime.run("up")
            return _run(runtime, arguments.seconds, arguments.seed)


def _run(runtime: Runtime, seconds: int, seed: int | None) -> int:
    status = runtime.json("status")
    url, admin = status["url"], Path(status["admin_key_file"]).read_text().strip()
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {admin}"}, trust_env=False
    ) as client:
        for path, body in (
            ("/v1/schema/migrations", {"name": "users", "sql": _TABLE}),
            ("/v1/tenants", {"tenant_id": "acme"}),
        ):
            client.post(path, json=body, timeout=60).raise_for_status()
    tenant = runtime.json("key", "create", "--tenant", "acme")["key"]
    # Last comes the one that may revoke its own key.
    doomed = runtime.json("key", "create", "--admin")["key"]
    options = ["--max-time", str(seconds // 3), "--generation-database", "none"]
    options += ["--seed", str(seed)] if seed is not None else []
    passed = True
    for name, key, excluded in (
        ("tenant", tenant, ()),
        ("admin", admin, DESTRUCTIVE),
        ("admin, everything", doomed, ()),
    ):
        found = check_document(
            url, key, options=options, excluded=excluded, timeout_s=seconds * 2 + 300
        )
        print(f"== {name}\n{found.report}")
        passed &= found.passed
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
