"""Reading a table page by page: sizes, places and statements, against a table in memory."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from tenancy.data_isolation.serve.runtime_client import AnswerError
from tenancy.data_isolation.serve.table_pages import PageSize, Table, read_pages, shown
from tenancy.data_isolation.serve.terminal import CommandError

_ROWS_FIRST = 500
_MIB = 1024 * 1024
_TABLE = Table(name="docs", columns=("body", "id"), primary_key=("id",))


class MemoryTable:
    """Rows of (body, id) in the order of `id`, with limits like those of the runtime."""

    columns: ClassVar = [{"name": "body", "type": "text"}, {"name": "id", "type": "integer"}]

    def __init__(self, bodies: list[str], *, rows_max: int = 10_000, bytes_max: int = 8 * _MIB):
        self.rows = [[body, number, str(number)] for number, body in enumerate(bodies, start=1)]
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.asked: list[tuple[str, list[Any]]] = []
        self.refused = 0

    def __call__(self, query: str, params: list[Any]) -> dict[str, Any]:
        *after, limit = params
        if limit == 0:
            return {"columns": self.columns, "rows": []}
        self.asked.append((query, params))
        first = int(after[0]) if after else 0
        rows = self.rows[first : first + limit]
        if query.startswith("select cast("):
            rows = [row[2:] for row in rows]
        if len(rows) > self.rows_max or len(json.dumps(rows)) > self.bytes_max:
            self.refused += 1
            raise _too_large()
        return {"columns": [], "rows": rows}


def _too_large() -> AnswerError:
    return AnswerError(
        {"type": "urn:tenancy:problem:result-too-large", "detail": "too large", "retryable": False}
    )


def _ids(ask: MemoryTable) -> list[int]:
    pages = list(read_pages(_TABLE, ask))
    for page in pages:
        assert page.content.count(b"\n") == page.rows > 0
    lines = b"".join(page.content for page in pages).splitlines()
    return [json.loads(line)["id"] for line in lines]


@pytest.mark.parametrize("rows", [0, 1, 2, 499, 500, 501, 1_500, 12_345])
def test_every_row_is_read_once_in_order(rows):
    ask = MemoryTable(["x"] * rows)

    assert _ids(ask) == list(range(1, rows + 1))
    assert ask.refused == 0


def test_a_row_is_an_object_of_its_columns_in_their_order():
    (page,) = read_pages(_TABLE, MemoryTable(["é\n\u2028"]))

    assert page.content == '{"body":"é\\n\u2028","id":1}\n'.encode()


class Script:
    """Answers with as many copies of one row as the first page asks for, then with none."""

    def __init__(self, kinds: list[str], row: list[Any]) -> None:
        self.columns = [{"name": "x", "type": kind} for kind in kinds]
        self.row = row
        self.asked: list[tuple[str, list[Any]]] = []

    def __call__(self, query: str, params: list[Any]) -> dict[str, Any]:
        self.asked.append((query, params))
        count = params[-1] if len(self.asked) == 2 else 0
        return {"columns": self.columns, "rows": [self.row] * count}


def test_names_are_quoted_and_keys_are_parameters():
    table = Table(name='a"b', columns=("select", "x"), primary_key=("x", "select"))
    ask = Script(["integer", "text"], [1, "it's", "it's", "1"])

    list(read_pages(table, ask))

    fields = 't."select", t."x", cast(t."x" as text), cast(t."select" as text)'
    start, order = f'select {fields} from "a""b" as t ', 'order by t."x", t."select" '
    assert ask.asked == [
        ('select t."select", t."x" from "a""b" as t limit $1', [0]),
        (f"{start}{order}limit $1", [_ROWS_FIRST]),
        (f'{start}where (t."x", t."select") > ($1, $2) {order}limit $3', ["it's", "1", 1_000]),
    ]


@pytest.mark.parametrize(
    ("kind", "value", "mark"),
    [
        ("text", "a", "$1"),
        ("integer[]", [1, 2], "$1"),
        ("numeric(5,2)[]", ["1.00"], "$1"),
        ("jsonb", "[1]", "cast(cast($1 as text) as jsonb)"),
        ("jsonb[]", [None], "$1"),
        ('"Pair"', [1, "a"], 'cast($1 as "Pair")'),
        ('"Pair"[]', [[1, "a"]], "$1"),
        ("point", "(1,2)", "$1"),
    ],
)
def test_a_key_goes_back_in_the_form_that_its_type_takes(kind, value, mark):
    ask = Script([kind], [value, "text of it"])

    list(read_pages(Table(name="x", columns=("k",), primary_key=("k",)), ask))

    query, params = ask.asked[2]
    assert f'where (t."k") > ({mark}) order' in query
    assert params[0] == "text of it"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "null"),
        ("null", "null"),
        ('{"b": [1, "x\\n"],\n "a": 1.50}', '{"b":[1,"x\\n"],"a":1.5}'),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.0000000000000000000001", "1.0000000000000000000001"),
        # What cannot be read stays as it is, on one line.
        ('{"a": 1,\r\n"a": 2}', '{"a": 1,  "a": 2}'),
        ('"\\ud800"', '"\\ud800"'),
        ("[" * 5_000 + "]" * 5_000, "[" * 5_000 + "]" * 5_000),
        ("1e99999999999999999999", "1e99999999999999999999"),
    ],
)
@pytest.mark.parametrize("other", [1, 2**70])
def test_json_is_written_as_json_whatever_is_in_it(text, line, other):
    table = Table(name="x", columns=("j", "k"), primary_key=("k",))

    (page,) = read_pages(table, Script(["json", "bigint"], [text, other, str(other)]))

    assert page.content.splitlines()[0].decode() == f'{{"j":{line},"k":{other}}}'
    assert page.content.count(b"\n") == page.rows


def test_pages_become_smaller_until_they_fit_and_grow_again():
    bodies = ["x"] * 800 + ["x" * 60_000] * 20 + ["x"] * 6_000
    ask = MemoryTable(bodies, bytes_max=200_000)

    assert _ids(ask) == list(range(1, len(bodies) + 1))
    assert ask.refused < 15
    assert max(params[-1] for _, params in ask.asked) > 1_000
    assert len(ask.asked) < 60


def test_a_limit_of_rows_is_found_and_seldom_tried_again():
    ask = MemoryTable(["x"] * 6_000, rows_max=100)

    assert _ids(ask) == list(range(1, 6_001))
    assert ask.refused < len(ask.asked) / 10


def test_a_row_that_is_too_large_is_named():
    ask = MemoryTable(["x"] * 600 + ["x" * 9_000] + ["x"] * 600, bytes_max=8_000)

    with pytest.raises(CommandError, match="the row with the key 'id' = '601' is larger") as told:
        _ids(ask)

    assert "TENANCY_RESULT_BYTES_MAX" in str(told.value.hint)


def test_a_row_whose_key_is_too_large_is_named_by_the_one_before():
    def ask(query: str, params: list[Any]) -> dict[str, Any]:
        if len(params) > 1 or params[0] > 1:
            raise _too_large()
        rows = [["\x1b[31m", "\x1b[31m"]] * params[0]
        return {"columns": [{"name": "k", "type": "text"}], "rows": rows}

    with pytest.raises(CommandError, match=r"the row after the key 'k' = '\\x1b\[31m' is larger"):
        list(read_pages(Table(name="x", columns=("k",), primary_key=("k",)), ask))


def test_other_errors_pass():
    def ask(query: str, params: list[Any]) -> dict[str, Any]:
        raise AnswerError({"type": "urn:tenancy:problem:statement-timeout", "detail": "slow"})

    with pytest.raises(AnswerError, match="slow"):
        list(read_pages(_TABLE, ask))


def test_a_table_without_a_key_cannot_be_read():
    with pytest.raises(CommandError, match="'docs' has no primary key"):
        list(read_pages(Table(name="docs", columns=("a",), primary_key=()), MemoryTable([])))


def test_a_page_is_as_large_as_its_rows_allow():
    size = PageSize()
    assert size.rows == _ROWS_FIRST
    size.follow(_ROWS_FIRST * 10)
    assert size.rows == 2 * _ROWS_FIRST
    size.follow(4 * _MIB)
    assert size.rows == _ROWS_FIRST // 2
    size.follow(10**9)
    assert size.rows == 1
    for _ in range(20):
        size.follow(1)
    assert size.rows == 5_000


def test_a_size_that_was_refused_is_tried_again_ever_later():
    size = PageSize()
    fitted = []
    for _ in range(8):
        size.halve()
        assert size.rows == _ROWS_FIRST // 2
        fitted.append(0)
        while size.rows == _ROWS_FIRST // 2:
            size.follow(1)
            fitted[-1] += 1
        assert size.rows == _ROWS_FIRST
    assert fitted == [2, 4, 8, 16, 32, 64, 64, 64]


def test_after_many_refusals_a_page_is_one_row_and_grows_quickly():
    size = PageSize()
    for _ in range(20):
        size.halve()
    assert size.rows == 1
    for _ in range(30):
        size.follow(1)
    assert size.rows == 5_000


def test_a_text_of_a_message_is_short_and_harmless():
    assert shown("a\x1b[0m\n") == "'a\\x1b[0m\\n'"
    assert len(shown("x" * 10_000)) == 80
