"""Results as streams of NDJSON and Arrow, on a real server, and over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import httpx
import pyarrow as pa
import pytest
from support.http_api import USERS, HttpApi
from support.running_api import MakeRunning, RunningApi

pytestmark = pytest.mark.migrated("0001_users", USERS)

_QUERY = "/v1/tenants/acme/query"
_BATCH = "/v1/tenants/acme/batch"
_NDJSON = {"Accept": "application/x-ndjson"}
_ARROW = {"Accept": "application/vnd.apache.arrow.stream"}
#: About 7 MB, which is more than all buffers between two processes hold.
_LARGE = {"query": "select repeat('x', 7000) from generate_series(1, 1000)", "params": []}


@pytest.fixture
async def acme(api: HttpApi) -> httpx.AsyncClient:
    await api.migrate()
    return await api.tenant("acme", "row")


def _lines(text: str) -> list[Any]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def _tables(body: bytes) -> list[tuple[dict[str, str], pa.Table]]:
    """Each stream of an Arrow body: what its schema says, and its rows."""
    found, source = [], io.BytesIO(body)
    while source.tell() < len(body):
        table = pa.ipc.open_stream(source).read_all()
        told = {key.decode(): text.decode() for key, text in table.schema.metadata.items()}
        found.append((told, table))
    return found


def _operations(*queries: str) -> dict[str, Any]:
    return {"operations": [{"query": query, "params": []} for query in queries]}


_SEVERAL = _operations(
    "select i as id, 'row ' || i as name from generate_series(1, 3) i",
    "select 1/0",
    "insert into users (id, email) values (1, 'a@b'), (2, 'c@d')",
    "select id from users order by id",
    "select from users",
)


async def test_ndjson_has_each_operations_rows_or_error_in_order_and_then_an_end(acme):
    answer = await acme.post(_BATCH, json=_SEVERAL, headers=_NDJSON)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["cache-control"] == "no-store"
    assert "content-length" not in answer.headers
    bigint, text = {"name": "id", "type": "bigint"}, {"name": "name", "type": "text"}
    lines = _lines(answer.text)
    error = lines[4].pop("error")
    assert (error["status"], error["sqlstate"]) == (400, "22012")
    assert lines == [
        {"operation": 0, "columns": [bigint | {"type": "integer"}, text], "row_count": 3},
        [1, "row 1"],
        [2, "row 2"],
        [3, "row 3"],
        {"operation": 1},
        {"operation": 2, "columns": [], "row_count": 2},
        {"operation": 3, "columns": [bigint], "row_count": 2},
        [1],
        [2],
        {"operation": 4, "columns": [], "row_count": 2},
        [],
        [],
        {"end": {"operations": 5, "errors": 1}},
    ]


async def test_arrow_has_a_stream_for_each_operation_and_then_an_end(acme):
    answer = await acme.post(_BATCH, json=_SEVERAL, headers=_ARROW)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert answer.headers["cache-control"] == "no-store"
    told, tables = zip(*_tables(answer.content), strict=True)
    assert tables[0].to_pylist() == [{"id": i, "name": f"row {i}"} for i in (1, 2, 3)]
    assert tables[3].to_pylist() == [{"id": 1}, {"id": 2}]
    assert json.loads(told[1].pop("tenancy.error"))["sqlstate"] == "22012"
    counts = {0: 3, 2: 2, 3: 2, 4: 2}
    assert list(told) == [
        {"tenancy.operation": str(number)}
        | ({"tenancy.row_count": str(counts[number])} if number in counts else {})
        for number in range(5)
    ] + [{"tenancy.end": '{"operations":5,"errors":1}'}]


async def test_a_single_statement_streams_as_an_operation(acme, subtests):
    body = {"query": "select $1::int as a", "params": [7]}

    rows = await acme.post(_QUERY, json=body, headers=_NDJSON | {"Prefer": "wait=5"})
    arrow = await acme.post(_QUERY, json=body, headers=_ARROW)

    assert rows.headers["preference-applied"] == "wait=5"
    assert _lines(rows.text)[1:] == [[7], {"end": {"operations": 1, "errors": 0}}]
    assert pa.ipc.open_stream(arrow.content).read_all().to_pylist() == [{"a": 7}]


async def test_rows_of_ndjson_are_those_of_json_byte_for_byte(acme):
    query = (
        "select 12345678901234567890.10::numeric, 9223372036854775807, "
        """'{"a": 123456789012345678901234567890, "b": 0.10000000000000000001}'::jsonb, """
        "'é\U0001f600'::text, '{{1,2},{3,4}}'::int[], '\\x00ff'::bytea, null::int, "
        "'NaN'::float8, 'infinity'::timestamptz, 1e16::float8"
    )
    plain = await acme.post(_QUERY, json={"query": query})
    stream = await acme.post(_QUERY, json={"query": query}, headers=_NDJSON)

    row = stream.content.splitlines()[1]
    assert plain.content.partition(b'"rows":[')[2].startswith(row + b"]")


async def test_json_is_given_when_nothing_else_is_asked_for(acme):
    given = {"query": "select 1 as a, 'x' as b"}
    plain = await acme.post(_QUERY, json=given, headers={"Accept": "*/*"})
    for accept in ("application/json", "application/*;q=0.1", "", "application/json, */*;q=0.9"):
        answer = await acme.post(_QUERY, json=given, headers={"Accept": accept})
        assert (answer.content, answer.headers) == (plain.content, plain.headers), accept
    assert plain.headers["content-length"] == str(len(plain.content))


async def test_what_cannot_be_given_is_a_problem_and_nothing_is_done(acme):
    for path, body in (
        (_QUERY, {"query": "insert into users (id, email) values (9, 'z')"}),
        (_BATCH, _operations("insert into users (id, email) values (9, 'z')")),
    ):
        answer = await acme.post(path, json=body, headers={"Accept": "text/csv"})

        assert answer.status_code == 406
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:tenancy:problem:not-acceptable"
        assert "application/x-ndjson" in answer.json()["detail"]
    assert (await acme.post(_QUERY, json={"query": "select id from users"})).json()["rows"] == []


async def test_what_fails_before_the_first_byte_is_a_problem(make_api, subtests):
    api = await make_api(result_rows_max=5)
    await api.migrate()
    acme = await api.tenant("acme", "row")
    atomic = _operations("insert into users (id, email) values (1, 'a')", "select 1/0")
    for path, body, status in (
        (_QUERY, {"query": "select 1/0"}, 400),
        (_QUERY, {"query": "select generate_series(1, 6)"}, 413),
        (_BATCH, {"operations": 1}, 422),
        (_BATCH, atomic | {"atomic": True}, 400),
    ):
        for headers in (_NDJSON, _ARROW):
            with subtests.test(path=path, body=body, headers=headers):
                answer = await acme.post(path, json=body, headers=headers)

                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/problem+json"
    # Limits hold for each operation of a batch, whatever its answer is sent as.
    cut = await acme.post(
        _BATCH, json=_operations("select generate_series(1, 6)", "select 1"), headers=_NDJSON
    )
    assert _lines(cut.text)[0]["error"]["type"] == "urn:tenancy:problem:result-too-large"
    assert _lines(cut.text)[-1] == {"end": {"operations": 2, "errors": 1}}
    assert (await acme.post(_QUERY, json={"query": "select id from users"})).json()["rows"] == []


async def test_an_atomic_batch_streams_all_of_its_results(acme):
    body = _operations("insert into users (id, email) values (1, 'a')", "select id from users")

    answer = await acme.post(_BATCH, json=body | {"atomic": True}, headers=_NDJSON)

    assert _lines(answer.text)[-2:] == [[1], {"end": {"operations": 2, "errors": 0}}]


async def test_a_batch_of_nothing_has_an_end(acme):
    answer = await acme.post(_BATCH, json={"operations": []}, headers=_NDJSON)
    arrow = await acme.post(_BATCH, json={"operations": []}, headers=_ARROW)

    assert answer.text == '{"end":{"operations":0,"errors":0}}\n'
    assert [told for told, _ in _tables(arrow.content)] == [
        {"tenancy.end": '{"operations":0,"errors":0}'}
    ]


_UTC = datetime.UTC
#: Type, text of the value, Arrow type, and what comes out of it.
_TYPES: tuple[tuple[str, str, pa.DataType, Any], ...] = (
    ("boolean", "t", pa.bool_(), True),
    ("smallint", "-32768", pa.int16(), -(2**15)),
    ("integer", "2147483647", pa.int32(), 2**31 - 1),
    ("bigint", "-9223372036854775808", pa.int64(), -(2**63)),
    ("real", "0.1", pa.float32(), 0.10000000149011612),
    ("double precision", "0.1", pa.float64(), 0.1),
    ("double precision", "-Infinity", pa.float64(), float("-inf")),
    ("numeric(38,2)", "9" * 36 + ".99", pa.decimal128(38, 2), Decimal("9" * 36 + ".99")),
    ("numeric(60,5)", "1.50000", pa.decimal256(60, 5), Decimal("1.50000")),
    ("numeric(5,0)", "12345", pa.decimal128(5, 0), Decimal(12345)),
    ("numeric", "1.10", pa.string(), "1.10"),
    ("numeric(3,5)", "0.00123", pa.string(), "0.00123"),
    ("text", "é", pa.string(), "é"),
    ("character varying(5)", "abc", pa.string(), "abc"),
    ("character(4)", "ab", pa.string(), "ab  "),
    ("jsonb", '{"a":123456789012345678901234567890}', pa.string(), None),
    ("bytea", "\\x00ff", pa.binary(), b"\x00\xff"),
    ("uuid", "8e03978e-40d5-43dd-bc93-6894a57f9324", pa.string(), None),
    ("date", "0001-01-01", pa.date32(), datetime.date(1, 1, 1)),
    (
        "timestamp without time zone",
        "2013-01-31 12:00:00.000001",
        pa.timestamp("us"),
        datetime.datetime(2013, 1, 31, 12, 0, 0, 1),
    ),
    (
        "timestamp(3) with time zone",
        "2013-01-31 12:00:00.5+05:30",
        pa.timestamp("us", "UTC"),
        datetime.datetime(2013, 1, 31, 6, 30, 0, 500_000, tzinfo=_UTC),
    ),
    ("time without time zone", "23:59:59.999999", pa.time64("us"), datetime.time.max),
    ("time with time zone", "12:00:00+05:30", pa.string(), None),
    ("interval", "1 mon 2 days 03:04:05", pa.string(), None),
    ("inet", "10.0.0.1/8", pa.string(), None),
    ("int4range", "[1,3)", pa.string(), None),
    ("bigint[]", "{1,NULL,3}", pa.list_(pa.int64()), [1, None, 3]),
    ("text[]", '{"a,b",NULL,""}', pa.list_(pa.string()), ["a,b", None, ""]),
    ("numeric(6,2)[]", "{1.10,NULL}", pa.list_(pa.decimal128(6, 2)), [Decimal("1.10"), None]),
    ("uuid[]", "{}", pa.list_(pa.string()), []),
    ("jsonb[]", '{"{\\"a\\":1}"}', pa.list_(pa.string()), ['{"a":1}']),
    # What the Arrow type cannot hold.
    ("numeric(5,2)", "NaN", pa.string(), "NaN"),
    ("date", "infinity", pa.string(), "infinity"),
    ("date", "0044-03-15 BC", pa.string(), "0044-03-15 BC"),
    ("timestamp with time zone", "-infinity", pa.string(), "-infinity"),
    ("timestamp without time zone", "20000-01-01 00:00:00", pa.string(), "20000-01-01 00:00:00"),
    ("time without time zone", "24:00:00", pa.string(), "24:00:00"),
    ("integer[]", "{{1,2},{3,4}}", pa.string(), "[[1,2],[3,4]]"),
)


async def test_every_type_comes_through_arrow_without_loss(acme, subtests):
    columns = ", ".join(
        f"${number}::text::{kind} as c{number}" for number, (kind, *_) in enumerate(_TYPES, start=1)
    )
    body = {"query": f"select {columns}", "params": [text for _, text, *_ in _TYPES]}

    answer = await acme.post(_QUERY, json=body, headers=_ARROW)

    assert answer.status_code == 200, answer.text
    table = pa.ipc.open_stream(answer.content).read_all()
    for field, column, (kind, text, expected, value) in zip(
        table.schema, table.columns, _TYPES, strict=True
    ):
        with subtests.test(kind=kind, text=text):
            assert field.type == expected
            assert field.metadata[b"postgresql.type"] == kind.encode()
            assert column.to_pylist() == [text if value is None else value]
            form = field.metadata.get(b"tenancy.form", b"").decode()
            assert form == _form(kind, text, expected)
    nulls = body | {"query": f"select {columns} where true", "params": [None] * len(_TYPES)}
    answer = await acme.post(_QUERY, json=nulls, headers=_ARROW)
    row = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    assert row == [{f"c{number}": None for number in range(1, len(_TYPES) + 1)}]


def _form(kind: str, text: str, arrow: pa.DataType) -> str:
    """What the field says of a text, by the table of the documentation."""
    if kind.startswith("jsonb") or (kind == "integer[]" and arrow == pa.string()):
        return "json"
    is_text = kind.partition("(")[0] in ("text", "character", "character varying")
    return "text" if arrow == pa.string() and not is_text else ""


async def test_a_type_of_the_schemas_own_is_text_or_json(api):
    await api.migrate(
        "create type mood as enum ('happy'); create domain label as jsonb; "
        "create table things (id bigint primary key, mood mood, label label, whole bigint[])",
        "things",
    )
    acme = await api.tenant("acme", "row")
    for label in ('{"a": 1}', '"x"'):
        made = await acme.post(
            _QUERY,
            json={
                "query": "insert into things values ($1, 'happy', $2, '{1}')",
                "params": [len(label), json.loads(label)],
            },
        )
        assert made.status_code == 200, made.text

    answer = await acme.post(
        _QUERY, json={"query": "select mood, label from things order by id"}, headers=_ARROW
    )

    table = pa.ipc.open_stream(answer.content).read_all()
    assert [field.metadata[b"tenancy.form"] for field in table.schema] == [b"text", b"json"]
    # One text beside an object: all of the column is JSON, so that the text has its quotes.
    assert table.to_pylist() == [
        {"mood": "happy", "label": '"x"'},
        {"mood": "happy", "label": '{"a":1}'},
    ]


# Over real connections

MakeSlow = Callable[..., Awaitable[tuple[RunningApi, "_Reader"]]]


class _Reader:
    """A client that takes what it is sent when it is told to."""

    def __init__(self, running: RunningApi, credential: str) -> None:
        self._url = httpx.URL(running.url)
        self._credential = credential

    async def ask(self, body: dict[str, Any], accept: str = "application/x-ndjson") -> None:
        sock = socket.socket()
        # Before it connects: later would be too late for the window.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (self._url.host, self._url.port))
        # The least that is read ahead.
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=1_024)
        text = json.dumps(body)
        self.writer.write(
            f"POST {_QUERY} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._credential}\r\n"
            f"Accept: {accept}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        await self.writer.drain()
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        assert b"transfer-encoding: chunked" in head.lower(), head

    async def rest(self) -> bytes:
        """All that still comes."""
        return await self.reader.read(-1)

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def _streams(running: RunningApi) -> dict[str, int]:
    """What is in work, as Prometheus is told."""
    text = (await running.api.admin.get("/metrics")).text
    return {
        name: int(float(value))
        for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        if name.endswith("_in_flight") or "cut" in name
    }


async def _none_left(running: RunningApi) -> None:
    async with asyncio.timeout(20):
        while (await _streams(running))["tenancy_http_streams_in_flight"]:
            await asyncio.sleep(0.02)
    left = await _streams(running)
    assert left["tenancy_http_tenants_in_flight"] == 0
    assert left["tenancy_http_requests_in_flight"] == 0


@pytest.fixture
async def make_slow(make_running: MakeRunning) -> AsyncIterator[MakeSlow]:
    """Starts the interface, and gives a client of the tenant acme; it is closed after the test."""
    readers = []

    async def make(**settings: Any) -> tuple[RunningApi, _Reader]:
        running = await make_running(**settings)
        await running.api.migrate()
        await running.api.tenant("acme", "row")
        readers.append(_Reader(running, await running.api.key("acme")))
        return running, readers[-1]

    yield make
    for reader in readers:
        await reader.close()


async def test_a_client_that_takes_its_time_gets_all_of_it(make_slow):
    running, reader = await make_slow()
    await reader.ask(_LARGE)
    assert (await _streams(running))["tenancy_http_streams_in_flight"] == 1

    body = await _whole(reader)

    assert len(body) > 7_000_000
    assert b'{"end":{"operations":1,"errors":0}}\n\r\n0\r\n\r\n' in body
    await _none_left(running)


async def _whole(reader: _Reader) -> bytes:
    read = bytearray()
    while not read.endswith(b"\r\n0\r\n\r\n"):
        piece = await reader.reader.read(65_536)
        assert piece, "the connection was cut"
        read += piece
    return bytes(read)


@pytest.mark.parametrize("accept", [_NDJSON["Accept"], _ARROW["Accept"]])
async def test_a_client_that_takes_nothing_is_given_up(make_slow, accept):
    running, reader = await make_slow(stream_write_timeout_s=0.2)

    await reader.ask(_LARGE, accept)
    await _none_left(running)

    # What was on its way comes, and no end: neither that of the stream nor that of the body.
    rest = await reader.rest()
    assert len(rest) < 7_000_000
    assert b'"end"' not in rest
    assert b"tenancy.end" not in rest
    assert not rest.endswith(b"0\r\n\r\n")


async def test_a_client_that_takes_too_long_for_all_is_given_up(make_slow):
    running, reader = await make_slow(stream_timeout_s=0.3)

    await reader.ask(_LARGE)
    await _none_left(running)

    assert b'"end"' not in await reader.rest()


async def test_a_client_that_goes_away_leaves_nothing_behind(make_slow):
    running, reader = await make_slow()

    await reader.ask(_LARGE)
    assert (await _streams(running))["tenancy_http_streams_in_flight"] == 1
    await reader.close()

    # Long before a time is over: those are of minutes here.
    await _none_left(running)


@pytest.mark.parametrize(
    ("setting", "status"),
    [("tenant_streams_in_flight_max", 429), ("streams_in_flight_max", 503)],
)
async def test_streams_of_one_tenant_and_of_all_are_bounded(make_slow, setting, status):
    running, reader = await make_slow(**{setting: 1})
    acme = await running.api.client(await running.api.key("acme"))
    await reader.ask(_LARGE)

    refused = await acme.post(
        _QUERY,
        json={"query": "insert into users (id, email) values (1, 'a')"},
        headers=_NDJSON,
    )
    plain = await acme.post(_QUERY, json={"query": "select id from users"})

    assert refused.status_code == status
    assert int(refused.headers["retry-after"]) >= 1
    assert f"TENANCY_{setting.upper()}" in refused.json()["detail"]
    assert plain.json()["rows"] == []
    await reader.close()
    await _none_left(running)
    again = await acme.post(_QUERY, json={"query": "select 1"}, headers=_NDJSON)
    assert again.status_code == 200


@pytest.mark.parametrize("accept", [_NDJSON["Accept"], _ARROW["Accept"]])
async def test_what_fails_in_the_middle_is_told_and_the_body_has_no_end(
    make_slow, monkeypatch, accept
):
    from tenancy.data_isolation.serve import arrow_stream, result_stream

    emptied = result_stream.emptied

    def failing(outcomes):
        yield from emptied(outcomes)
        raise RuntimeError("a fault of the writer")

    monkeypatch.setattr(result_stream, "emptied", failing)
    monkeypatch.setattr(arrow_stream, "emptied", failing)
    running, reader = await make_slow()
    await reader.ask(_LARGE, accept)

    body = await reader.rest()

    assert len(body) > 5_000_000
    assert b"urn:tenancy:problem:internal-error" in body
    assert b"what was asked has been done" in body
    assert b"a fault of the writer" not in body
    assert b"failed" in body
    assert b'"end"' not in body
    assert b"tenancy.end" not in body
    assert not body.endswith(b"0\r\n\r\n")
    await _none_left(running)
