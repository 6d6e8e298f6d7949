"""Values come out of PostgreSQL and go into it without loss, for every sort of type."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import math
import struct
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.postgres import PostgresServer
from support.sessions import ask, open_session

from tenancy.data_isolation.core.errors import ParameterError, StatementError
from tenancy.data_isolation.engine.connection import Connection

TYPES = """
drop schema if exists kinds cascade;
create schema kinds;
create type kinds.mood as enum ('sad', 'so so', 'happy "really"');
create domain kinds.short as text check (length(value) < 100);
create domain kinds.numbers as int[];
create type kinds.pair as (number int, label kinds.short, "Odd name" numeric(10, 2));
create type kinds.nested as (head kinds.pair, tail kinds.pair[], mood kinds.mood);
create type kinds.span as range (subtype = float8);
"""

#: Text without what PostgreSQL cannot hold.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    # PostgreSQL writes a large one as an integer.
    | st.floats(-1e15, 1e15)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
FLOATS = st.floats().map(
    lambda number: (
        number
        if math.isfinite(number)
        else "NaN"
        if math.isnan(number)
        else "Infinity"
        if number > 0
        else "-Infinity"
    )
)
PAIRS = st.tuples(
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | TEXT,
    st.none() | st.decimals(-(10**7), 10**7, places=2).map(lambda number: f"{number:.2f}"),
).map(list)


def is_between_two_singles(number: float) -> bool:
    """Whether two numbers of single precision are just as near, as to 243241000.

    PostgreSQL stores one of them, and writes as few digits as tell it from its neighbours.
    """
    (single,) = struct.unpack("f", struct.pack("f", number))
    _, exponent = math.frexp(number)
    return abs(number - single) * 2 == math.ldexp(1.0, exponent - 24)


#: Values in wire form, by type.
WIRE_FORMS: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double precision": FLOATS,
    # Six digits mean the same number in single and in double precision.
    "real": st.floats(-1e30, 1e30)
    .map(lambda number: float(f"{number:.6g}"))
    .filter(lambda number: number == 0 or abs(number) > 1e-30)
    .filter(lambda number: not is_between_two_singles(number)),
    "text": TEXT,
    "varchar(40)": TEXT,
    "jsonb": JSON.filter(lambda value: value is not None),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=5).map(
        lambda number: f"{number:f}"
    ),
    "uuid": st.uuids().map(str),
    "date": st.dates().map(str),
    "bytea": st.binary(max_size=40).map(lambda value: "\\x" + value.hex()),
    "kinds.mood": st.sampled_from(["sad", "so so", 'happy "really"']),
    "kinds.short": TEXT,
    "kinds.numbers": st.lists(st.none() | st.integers(-5, 5), max_size=5),
    "kinds.pair": PAIRS,
    "integer[]": st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=6),
    "text[]": st.lists(st.none() | TEXT | st.sampled_from(["NULL", "null", "", '"', "\\"])),
    "jsonb[]": st.lists(st.none() | JSON.filter(lambda value: value is not None), max_size=4),
    "kinds.pair[]": st.lists(st.none() | PAIRS, max_size=3),
    "kinds.nested": st.tuples(
        PAIRS, st.lists(PAIRS, max_size=2), st.sampled_from(["sad", 'happy "really"'])
    ).map(list),
}

#: The text that PostgreSQL writes, by type: each is its own wire form.
TEXTS = {
    "numeric": ["0", "-0.000010", "1e5", "NaN", "Infinity", "12345678901234567890.123456789"],
    "money": ["$1,234.50"],
    "timestamp": ["2013-01-31 12:34:56.789012", "infinity", "0001-01-01 00:00:00 BC"],
    "timestamptz": ["2013-01-31 12:34:56.789012+00", "-infinity"],
    "time": ["23:59:59.999999", "24:00:00"],
    "timetz": ["12:00:00+02"],
    "interval": ["1 mon -2 days +03:04:05.678", "00:00:00", "-1 years"],
    "date": ["infinity", "0044-03-15 BC"],
    "inet": ["192.168.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "varbit": ["10101"],
    "int4range": ["[1,5)", "empty", "(,5)"],
    "tstzrange": ['["2013-01-01 00:00:00+00",infinity)'],
    "kinds.span": ["[1.5,2.5]"],
    "int4multirange": ["{[1,3),[5,7)}"],
    "point": ["(1,2)"],
    "box": ["(3,4),(1,2)"],
    "polygon": ["((0,0),(1,1),(1,0))"],
    "circle": ["<(1,2),3>"],
    "tsvector": ["'brown':3 'fox':4"],
    "tsquery": ["'a' & 'b'"],
    "xml": ["<a>b</a>"],
    "jsonpath": ['$."a"[*]'],
    "oid": ["26"],
    "regclass": ["pg_class"],
    "pg_lsn": ["16/B374D848"],
    "txid_snapshot": ["10:20:10,14"],
    "int2vector": ["1 2 3"],
    "character(4)": ["ab  "],
    "name": ["a name"],
}

#: Python objects as parameters: type, object, wire form that comes back.
OBJECTS = [
    ("numeric", Decimal("1.10"), "1.10"),
    ("numeric", 7, "7"),
    ("numeric", 0.1, "0.1"),
    ("numeric", Decimal("-Infinity"), "-Infinity"),
    ("double precision", Decimal("0.5"), 0.5),
    ("double precision", 3, 3.0),
    ("double precision", math.inf, "Infinity"),
    ("money", Decimal("12.5"), "$12.50"),
    ("bigint", "42", 42),
    ("uuid", uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ("bytea", b"\x00\xff", "\\x00ff"),
    ("bytea", bytearray(b"a"), "\\x61"),
    ("date", datetime.date(2013, 1, 31), "2013-01-31"),
    ("timestamp", datetime.datetime(2013, 1, 31, 1, 2, 3, 4), "2013-01-31 01:02:03.000004"),
    (
        "timestamptz",
        datetime.datetime(2013, 1, 31, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        "2013-01-30 23:00:00+00",
    ),
    ("timestamptz", datetime.datetime(2013, 1, 31), "2013-01-31 00:00:00+00"),
    ("time", datetime.time(1, 2, 3), "01:02:03"),
    ("timetz", datetime.time(1, 2, tzinfo=datetime.UTC), "01:02:00+00"),
    (
        "interval",
        datetime.timedelta(days=-1, seconds=1, microseconds=5),
        "-1 days +00:00:01.000005",
    ),
    ("inet", ipaddress.ip_address("::1"), "::1"),
    ("cidr", ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (
        "jsonb",
        Decimal("1.23456789012345678901234567890"),
        Decimal("1.23456789012345678901234567890"),
    ),
    ("jsonb", {"a": [Decimal("0.10"), None, {}]}, {"a": [0.1, None, {}]}),
    ("jsonb", (1, 2), [1, 2]),
    ("jsonb", "text", "text"),
    ("date[]", [datetime.date(2013, 1, 31), None], ["2013-01-31", None]),
    ("integer[]", [[1, 2], [3, None]], [[1, 2], [3, None]]),
    ("integer[]", [], []),
    ("box[]", ["(1,1),(0,0)", None], ["(1,1),(0,0)", None]),
    ("kinds.pair", {"label": "x"}, [None, "x", None]),
    ("kinds.pair", (1, "", Decimal("2")), [1, "", "2.00"]),
    ("kinds.pair", [None, None, None], [None, None, None]),
]

#: What a type does not take: type, object, part of the message.
WRONG = [
    ("integer", "x", "invalid input syntax for type integer"),
    ("integer", 1.5, "takes an integer, not float"),
    ("integer", True, "takes an integer, not bool"),
    ("smallint", 2**15, "out of range"),
    ("boolean", 1, "takes true or false, not int"),
    ("text", 1, "takes a text, not int"),
    ("text", "\ud800", "cannot be sent"),
    ("text", "a\x00b", "invalid byte sequence"),
    ("date", datetime.datetime(2013, 1, 1), "takes a date"),
    ("timestamp", datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC), "without a time zone"),
    ("uuid", 5, "takes a UUID"),
    ("jsonb", {1, 2}, "takes a JSON value"),
    ("jsonb", math.nan, "finite"),
    ("integer[]", 5, "takes a list"),
    ("integer[]", [[1], [2, 3]], "array"),
    ("kinds.pair", [1, 2], "a list of 3 attributes, not 2"),
    ("kinds.pair", {"unknown": 1}, "an object of the attributes"),
    ("kinds.mood", "angry", "invalid input value for enum"),
]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def session(runner: asyncio.Runner, postgres_server: PostgresServer) -> Iterator[Connection]:
    async def begin() -> Connection:
        opened = await open_session(postgres_server)
        for statement in filter(str.strip, TYPES.split(";")):
            await ask(opened, statement)
        return opened

    made = runner.run(begin())
    yield made
    runner.run(made.close())


async def _there_and_back(session: Connection, kind: str, value: Any) -> Any:
    result = await ask(session, f"select $1::{kind} as value", value)
    return result.rows[0][0]


@pytest.mark.parametrize("kind", WIRE_FORMS)
def test_a_value_comes_back_as_it_was_given(kind, session, runner):
    @settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(WIRE_FORMS[kind])
    def check(value: Any) -> None:
        found = runner.run(_there_and_back(session, kind, value))
        assert found == value
        assert type(found) is type(value)

    check()


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in TEXTS.items() for text in texts]
)
def test_other_types_are_the_text_that_postgresql_writes(kind, text, session, runner):
    try:
        result = runner.run(ask(session, f"select $1::{kind}, format('%s', $1::{kind})", text))
    except StatementError as error:
        if kind == "xml" and error.sqlstate == "0A000":
            pytest.skip("this PostgreSQL was built without XML")
        raise
    (found, written) = result.rows[0]

    assert found == written
    assert runner.run(_there_and_back(session, kind, found)) == found


@pytest.mark.parametrize(("kind", "given_value", "expected"), OBJECTS)
def test_python_objects_are_parameters_too(kind, given_value, expected, session, runner):
    found = runner.run(_there_and_back(session, kind, given_value))

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("kind", "value", "message"), WRONG)
def test_what_a_type_does_not_take_is_refused_with_position_and_type(
    kind, value, message, session, runner
):
    with pytest.raises(ParameterError) as caught:
        runner.run(ask(session, f"select $1::text, $2::{kind}", "fine", value))

    assert message in caught.value.detail
    if "takes" in message:
        assert "parameter $2" in caught.value.detail
        assert f"of type {kind}" in caught.value.detail
    assert runner.run(_there_and_back(session, "integer", 1)) == 1, "the session goes on"


def test_null_is_none_for_every_type(session, runner):
    for kind in [*WIRE_FORMS, *TEXTS]:
        assert runner.run(_there_and_back(session, kind, None)) is None


def test_numbers_in_json_keep_every_digit(session, runner):
    text = (
        '{"a": 1.10, "b": 12345678901234567890.5, "c": 1e400, "d": 123456789012345678901234567890}'
    )
    value = runner.run(ask(session, f"select '{text}'::jsonb")).rows[0][0]

    assert value["a"] == 1.1
    assert isinstance(value["a"], float)
    assert value["b"] == Decimal("12345678901234567890.5")
    assert value["c"] == Decimal("1e400")
    assert value["d"] == 123456789012345678901234567890
    long_integer = runner.run(ask(session, "select repeat('7', 5000)::jsonb")).rows[0][0]
    assert long_integer == Decimal("7" * 5000)


def test_lower_bounds_of_arrays_are_left_out(session, runner):
    result = runner.run(ask(session, 'select \'[0:1][3:4]={{a,"b c"},{NULL,"NULL"}}\'::text[]'))

    assert result.rows == [[[["a", "b c"], [None, "NULL"]]]]


def test_a_row_without_a_type_is_a_list_of_texts(session, runner):
    result = runner.run(ask(session, "select row(1, 'a \"b\" \\ c', null, '')"))

    assert result.rows == [[["1", 'a "b" \\ c', None, ""]]]


def test_columns_are_named_as_format_type_spells_them(session, runner):
    query = (
        "select 1::numeric(10,2) as a, 'x'::varchar(7) as b, 'sad'::kinds.mood as c, "
        "array[1]::int[] as d, now()::timestamptz(3) as e, 1::kinds.short as f, "
        "array['sad']::kinds.mood[] as g"
    )
    result = runner.run(ask(session, query))

    assert [(column.name, column.type) for column in result.columns] == [
        ("a", "numeric(10,2)"),
        ("b", "character varying(7)"),
        ("c", "kinds.mood"),
        ("d", "integer[]"),
        ("e", "timestamp(3) with time zone"),
        ("f", "text"),
        ("g", "kinds.mood[]"),
    ]


def test_json_that_not_everything_can_carry_is_told_and_not_passed_on(session, runner):
    deep = "select (repeat('[', $1) || repeat(']', $1))::{}"
    for kind in ("json", "jsonb"):
        kept = runner.run(ask(session, deep.format(kind), 500)).rows[0][0]
        assert repr(kept) == "[" * 500 + "]" * 500
        for depth in (501, 900, 990, 5_000):
            with pytest.raises(
                StatementError, match="more than 500 levels deep; select it as text"
            ):
                runner.run(ask(session, deep.format(kind), depth))
    for text in ('"\\ud800"', '{"\\uDFFF": 1}', '[1.50, "\\ud800x"]'):
        with pytest.raises(StatementError, match="surrogate pair; select it as text"):
            runner.run(ask(session, f"select '{text}'::json"))
    pair = runner.run(ask(session, "select '\"\\ud83d\\ude00\"'::json")).rows[0][0]
    assert pair == "\N{GRINNING FACE}"
