"""An export of a tenant, against a runtime in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenancy.data_isolation.serve.export import Export, Progress
from tenancy.data_isolation.serve.row_file import Content, RowFile, file_name
from tenancy.data_isolation.serve.runtime_client import AnswerError
from tenancy.data_isolation.serve.table_pages import Page
from tenancy.data_isolation.serve.terminal import CommandError


class MemoryRuntime:
    """A client of a runtime with one tenant and two tables, `a` with three rows and `b` empty."""

    def __init__(self) -> None:
        self.tenant = {"tenant_id": "acme", "isolation_level": "row", "status": "active"}
        self.schema = {
            "version": 3,
            "relations": [_relation("a"), _relation("b"), _relation("v", "view")],
        }
        #: Raised by the next questions.
        self.failures: list[BaseException] = []
        #: Done before each question.
        self.meddle: Callable[[], object] = lambda: None
        self.queries: list[str] = []

    def get(self, path: str, **params: Any) -> Any:
        found = {"/v1/tenants/acme": self.tenant, "/v1/schema": self.schema}
        if path not in found:
            raise CommandError("There is no such tenant.")
        return json.loads(json.dumps(found[path]))

    def post(self, path: str, body: Any = None) -> Any:
        assert path == "/v1/tenants/acme/query"
        self.meddle()
        if self.failures:
            raise self.failures.pop(0)
        self.queries.append(body["query"])
        rows = [[n, str(n)] for n in range(3)] if ' from "a" ' in body["query"] else []
        rows = rows[: body["params"][-1]]
        columns = [{"name": "id", "type": "integer"}, {"name": "id", "type": "text"}]
        width = 1 if body["params"] == [0] else 2
        return {"columns": columns[:width], "rows": rows, "row_count": len(rows)}


def _relation(name: str, kind: str = "table") -> dict[str, Any]:
    column = {"name": "id", "type": "integer", "not_null": True}
    return {
        "name": name,
        "kind": kind,
        "primary_key": ["id"] if kind == "table" else [],
        "columns": [column | {"generated": False, "identity": None}],
    }


def _problem(slug: str, *, retryable: bool = False, retry_after_s: float = 0) -> AnswerError:
    problem = {"type": f"urn:tenancy:problem:{slug}", "detail": slug, "retryable": retryable}
    return AnswerError(problem, retry_after_s)


@pytest.fixture
def runtime() -> MemoryRuntime:
    return MemoryRuntime()


def _names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_each_table_has_a_file_and_the_manifest_says_what_is_in_it(runtime, tmp_path):
    told: list[Progress] = []

    manifest = Export(runtime, "acme", report=told.append).write(tmp_path / "x")

    assert _names(tmp_path / "x") == ["a.ndjson", "b.ndjson", "manifest.json"]
    assert (tmp_path / "x" / "a.ndjson").read_text() == '{"id":0}\n{"id":1}\n{"id":2}\n'
    assert manifest == json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert [(table["name"], table["rows"]) for table in manifest["tables"]] == [("a", 3), ("b", 0)]
    assert manifest["tables"][0]["columns"] == runtime.schema["relations"][0]["columns"]
    assert manifest["schema_version"] == 3
    assert [(item.table, item.position, item.rows) for item in told] == [
        ("a", 0, 0),
        ("a", 0, 3),
        ("b", 1, 3),
    ]
    assert {item.tables for item in told} == {2}


def test_what_passes_is_asked_again_after_a_pause(runtime, tmp_path):
    pauses: list[float] = []
    runtime.failures = [
        _problem("overloaded", retryable=True),
        _problem("rate-limited", retryable=True, retry_after_s=3),
    ]

    Export(runtime, "acme", pause=pauses.append).write(tmp_path / "x")

    assert len(runtime.queries) == 4
    assert pauses == [0.2, 3]


def test_what_does_not_pass_is_told_in_the_end(runtime, tmp_path):
    pauses: list[float] = []
    runtime.failures = [_problem("overloaded", retryable=True) for _ in range(50)]

    with pytest.raises(CommandError, match="table 'a': overloaded"):
        Export(runtime, "acme", pause=pauses.append).write(tmp_path / "x")

    assert pauses == sorted(pauses)
    assert 10 < sum(pauses) < 60
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (_problem("statement-timeout"), CommandError),
        (CommandError("the connection to the runtime broke"), CommandError),
        (OSError(28, "No space left on device"), CommandError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_after_an_error_nothing_is_left(runtime, tmp_path, error, raised):
    runtime.failures = [error]

    with pytest.raises(raised):
        Export(runtime, "acme").write(tmp_path / "x")

    assert _names(tmp_path) == []


def test_a_schema_that_changes_meanwhile_spoils_the_export(runtime, tmp_path, subtests):
    def another_version() -> None:
        runtime.schema["version"] = 4

    def another_column() -> None:
        runtime.schema["relations"][1]["columns"][0]["type"] = "bigint"

    for change in (another_version, another_column):
        with subtests.test(change=change.__name__):
            runtime.meddle = change
            with pytest.raises(CommandError, match="the schema has changed meanwhile"):
                Export(runtime, "acme").write(tmp_path / "x")
            assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "told"), [("suspended", "is suspended"), ("creating", "is creating")]
)
def test_a_tenant_that_takes_no_operations_is_not_asked(runtime, tmp_path, status, told):
    runtime.tenant["status"] = status

    with pytest.raises(CommandError, match=told):
        Export(runtime, "acme").write(tmp_path / "x")

    assert _names(tmp_path) == []
    assert runtime.queries == []


def test_a_file_that_is_not_as_it_was_written_is_told(runtime, tmp_path):
    def spoil() -> None:
        # Sees the file of the table before, which is on the disk by then.
        for path in tmp_path.glob(".tenancy-*/*.ndjson"):
            path.write_text("")

    content = Content.of
    try:
        Content.of = lambda path: (spoil(), content(path))[1]
        with pytest.raises(CommandError, match=r"a\.ndjson does not hold what was written"):
            Export(runtime, "acme").write(tmp_path / "x")
    finally:
        Content.of = content

    assert _names(tmp_path) == []


def test_a_file_is_counted_as_it_is_written_and_as_it_is_read(tmp_path):
    path = tmp_path / "a"
    with RowFile(path) as file:
        file.write(Page(rows=2, content=b"1\n2\n"))
        file.write(Page(rows=1, content=b'"\xc3\xa9"\n'))

    assert file.content == Content.of(path)
    assert (file.content.rows, file.content.bytes) == (3, 9)
    with pytest.raises(FileExistsError):
        RowFile(path)


def test_names_of_files_are_different_and_part_of_one_path():
    names = [
        *("orders", "Order", "order", "a/b", "a%2Fb", "a\\b", ".", "..", ".a", "%2Ea", "a b"),
        *("größe", "\x07", "\n", "a:b", "\u202e", "x" * 63, "\x01" * 63, "\u202e" * 21),
    ]

    files = [file_name(name) for name in names]

    assert len({name.lower() for name in files}) == len(files) - 1
    for name in files:
        assert name.endswith(".ndjson")
        assert not name.startswith(".")
        assert "/" not in name
        assert name.isprintable()
        assert len(name.encode()) <= 255
    assert file_name("größe") == "größe.ndjson"
    assert file_name("a/b") == "a%2Fb.ndjson"
