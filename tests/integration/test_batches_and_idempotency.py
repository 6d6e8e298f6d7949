"""Several statements at once, and writes that happen once however often they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import (
    ConstraintError,
    IdempotencyConflictError,
    InvalidInputError,
    ParameterError,
    RequestTooLargeError,
    ResultTooLargeError,
    StatementError,
    StatementForbiddenError,
    StatementTimeoutError,
    TenancyError,
)
from tenancy.data_isolation.core.types import IsolationLevel, Operation, QueryResult
from tenancy.data_isolation.engine.engine import Engine

pytestmark = pytest.mark.migrated("0001_users", TABLES)

ADD = "insert into users (id, email) values ($1, $2)"
COUNT = "select count(*) from users"


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, batch_operations_max=100) as made:
        yield made


def add(number: int, **options: str) -> Operation:
    return Operation(query=ADD, params=[number, f"user {number}"], **options)


@pytest.mark.parametrize("level", [IsolationLevel.ROW, IsolationLevel.DATABASE])
async def test_operations_of_a_batch_run_in_order_and_each_on_its_own(engine, level):
    await make_tenant(engine, "acme", level, users=2)

    outcomes = await engine.execute_batch(
        "acme",
        [
            Operation(query=COUNT),
            add(3),
            add(1),
            Operation(query="selec"),
            Operation(query="drop table users"),
            Operation(query="select $1::integer", params=["x"]),
            Operation(query="select $1::integer", params=[1.5]),
            add(4),
            Operation(query="update users set plan = null where id > 2 returning id"),
            Operation(query="select 1 / 0"),
            Operation(query=COUNT),
        ],
    )

    results = {n: item for n, item in enumerate(outcomes) if isinstance(item, QueryResult)}
    assert {n: item.rows for n, item in results.items()} == {
        0: [[2]],
        1: [],
        7: [],
        8: [[3], [4]],
        10: [[4]],
    }
    kinds = {n: type(item) for n, item in enumerate(outcomes) if isinstance(item, TenancyError)}
    assert kinds[2] is ConstraintError
    assert issubclass(kinds[3], StatementError)
    assert kinds[4] is StatementForbiddenError
    assert kinds[5] is kinds[6] is ParameterError
    assert kinds[9] is StatementError


@pytest.mark.parametrize("level", [IsolationLevel.ROW, IsolationLevel.SCHEMA])
async def test_an_atomic_batch_happens_as_a_whole_or_not_at_all(engine, level):
    await make_tenant(engine, "acme", level, users=2)
    returning = Operation(query="update users set plan = null returning id")
    late = Operation(query="insert into late values (1, 50)")

    done = await engine.execute_batch(
        "acme", [add(3), returning, late, add(50), Operation(query=COUNT)], atomic=True
    )
    assert [item.row_count for item in done] == [1, 3, 1, 1, 1]
    assert done[4].rows == [[4]]

    for operations, kind, words in (
        ([add(5), add(1)], ConstraintError, "operation 1:"),
        ([add(5), returning, add(1)], ConstraintError, "operation 2:"),
        ([add(5), Operation(query="selec")], StatementError, "operation 1:"),
        ([add(5), Operation(query="select nothing")], StatementError, "operation 1:"),
        ([add(5), add("x")], ParameterError, "operation 1:"),  # type: ignore[arg-type]
        ([add(5), Operation(query="insert into late values (2, 99)")], ConstraintError, "late"),
        ([returning, add(5), late], ConstraintError, "operation 2:"),
    ):
        with pytest.raises(kind, match=words):
            await engine.execute_batch("acme", operations, atomic=True)
        assert (await ask(engine, "acme", COUNT)).rows == [[4]]


async def test_an_atomic_batch_is_undone_when_a_result_is_too_large_or_time_is_over(install):
    async with opened(install, result_rows_max=5, statement_timeout_ms=500) as engine:
        await make_tenant(engine, users=4)
        large = Operation(query="select n from generate_series(1, 6) n")
        slow = Operation(query="select count(*) from generate_series(1, 3000000000) n")
        for last, kind in ((large, ResultTooLargeError), (slow, StatementTimeoutError)):
            for first in (add(7), Operation(query=ADD + " returning id", params=[7, "x"])):
                with pytest.raises(kind):
                    await engine.execute_batch("acme", [first, last], atomic=True)
        assert (await ask(engine, "acme", COUNT)).rows == [[4]]


LARGE = "insert into plans values ($1, repeat('x', 30000)) returning name"


def large(number: int, **options: str) -> Operation:
    return Operation(query=LARGE, params=[number], **options)


@pytest.mark.parametrize("keyed", [False, True])
async def test_what_a_batch_gives_together_is_bounded_whatever_it_is_made_of(install, keyed):
    """Writes that give rows, and those with a key, run each by itself and count all the same."""
    async with opened(install, batch_result_bytes_max=100_000) as engine:
        await make_tenant(engine, users=1)
        operations = [large(n, **({"idempotency_key": f"k{n}"} if keyed else {})) for n in range(6)]
        operations.insert(4, add(7))
        operations.append(Operation(query="select repeat('y', 5000)"))

        outcomes = await engine.execute_batch("acme", operations)

        kinds = [type(item) for item in outcomes]
        assert kinds == [
            *[QueryResult] * 3,
            ResultTooLargeError,
            QueryResult,
            *[ResultTooLargeError] * 2,
            QueryResult,
        ]
        assert "the batch" in str(outcomes[3])
        assert "100000 bytes together" in str(outcomes[3])
        kept = await ask(engine, "acme", "select count(*), (select count(*) from users) from plans")
        assert kept.rows == [[3, 2]], "what was refused was undone"


async def test_the_answers_to_a_batch_that_is_sent_again_are_bounded_too(install):
    async with (
        opened(install) as engine,
        opened(install, tables=False, batch_result_bytes_max=100_000) as narrow,
    ):
        await make_tenant(engine, users=1)
        operations = [large(n, idempotency_key=f"k{n}") for n in range(6)]
        first = await engine.execute_batch("acme", operations)
        assert await engine.execute_batch("acme", operations) == first

        again = await narrow.execute_batch("acme", operations)

        assert again[:3] == first[:3]
        assert [type(item) for item in again[3:]] == [ResultTooLargeError] * 3
        assert (await ask(engine, "acme", "select count(*) from plans")).rows == [[6]]


@pytest.mark.parametrize("key", [None, "all"])
async def test_an_atomic_batch_whose_results_are_too_large_together_names_the_first(install, key):
    async with opened(install, result_bytes_max=50_000, batch_result_bytes_max=100_000) as engine:
        await make_tenant(engine, users=1)
        options = {} if key is None else {"idempotency_key": key}

        for numbers in (range(3), range(6)):
            operations = [large(n, **(options if n == 0 else {})) for n in numbers]
            if len(numbers) == 3:
                done = await engine.execute_batch("acme", operations, atomic=True)
                assert [len(item.rows[0][0]) for item in done] == [30_000] * 3
                await ask(engine, "acme", "delete from plans")
                options = {} if key is None else {"idempotency_key": f"{key}, again"}
            else:
                with pytest.raises(ResultTooLargeError, match=r"^operation 3: .*together"):
                    await engine.execute_batch("acme", operations, atomic=True)
        assert (await ask(engine, "acme", "select count(*) from plans")).rows == [[0]]


async def test_what_gives_no_rows_needs_nothing_of_what_is_left(install):
    async with opened(install, batch_result_bytes_max=30_100, placement_refresh_ms=1) as engine:
        await make_tenant(engine, users=1)
        none = Operation(query="update plans set name = 'y' where id = 9 returning name")
        operations = [large(1), large(2), add(7), none, add(8, idempotency_key="k"), add(9)]

        outcomes = await engine.execute_batch("acme", operations)

        assert [type(item) for item in outcomes] == [
            QueryResult,
            ResultTooLargeError,
            *[QueryResult] * 4,
        ]


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_transaction_that_is_stopped_for_its_rows_says_so(install, at):
    """The statement that gives them is cancelled, which is not how it ends for the caller."""
    async with opened(install, result_bytes_max=100_000, batch_result_bytes_max=100_000) as engine:
        await make_tenant(engine, users=1)
        rows = "select repeat('x', 1000) from generate_series(1, 9000)"
        operations = [add(7), add(8), add(9)]
        operations[at] = Operation(query=rows)

        with pytest.raises(ResultTooLargeError, match=f"^operation {at}: "):
            await engine.execute_batch("acme", operations, atomic=True)
        assert (await ask(engine, "acme", COUNT)).rows == [[1]]


async def test_rows_without_values_are_not_free(install):
    async with opened(install, batch_result_bytes_max=50_000) as engine:
        await make_tenant(engine, users=1)
        nothing = Operation(query="select from generate_series(1, 5000)")

        outcomes = await engine.execute_batch("acme", [nothing] * 3)

        assert [type(item) for item in outcomes] == [QueryResult, *[ResultTooLargeError] * 2]


async def test_an_answer_that_could_not_be_given_again_is_refused_at_once(install):
    """Control characters get six times as long as JSON."""
    async with opened(install, result_bytes_max=20_000, batch_result_bytes_max=20_000) as engine:
        await make_tenant(engine, users=1)
        text = "insert into plans values ($1, repeat(chr(1), $2)) returning name"
        fits = Operation(query=text, params=[1, 5_000], idempotency_key="fits")
        first = await engine.execute("acme", fits)
        assert await engine.execute("acme", fits) == first

        with pytest.raises(ResultTooLargeError):
            await engine.execute(
                "acme", Operation(query=text, params=[2, 19_000], idempotency_key="does not")
            )
        assert (await ask(engine, "acme", "select count(*) from plans")).rows == [[1]]


async def test_batches_are_bounded_and_may_be_empty(engine):
    await make_tenant(engine)

    for atomic in (False, True):
        assert await engine.execute_batch("acme", [], atomic=atomic) == []
        with pytest.raises(RequestTooLargeError):
            await engine.execute_batch("acme", [Operation(query=COUNT)] * 101, atomic=atomic)


@pytest.mark.parametrize("level", IsolationLevel)
async def test_a_write_with_a_key_happens_once_and_answers_the_same(engine, level):
    await make_tenant(engine, "acme", level, users=1)
    await make_tenant(engine, "other", level, users=1)
    query = ADD + " returning id, email, 1.50::numeric, $2::jsonb"
    write = Operation(query=query, params=[9, '"é"'], idempotency_key="key 1")

    first = await engine.execute("acme", write)
    again = await engine.execute("acme", write)

    assert first == again
    assert first.rows == [[9, '"é"', "1.50", "é"]]
    with pytest.raises(IdempotencyConflictError):
        await engine.execute(
            "acme", Operation(query=query, params=[10, '"x"'], idempotency_key="key 1")
        )
    assert (await ask(engine, "acme", COUNT)).rows == [[2]]
    assert (await engine.execute("other", write)).rows == first.rows, "keys are the tenant's own"


async def test_a_write_that_failed_leaves_its_key_free(engine):
    await make_tenant(engine, users=1)
    with pytest.raises(ConstraintError):
        await engine.execute("acme", add(1, idempotency_key="k"))
    await ask(engine, "acme", "delete from users")

    assert (await engine.execute("acme", add(1, idempotency_key="k"))).row_count == 1
    assert (await engine.execute("acme", add(1, idempotency_key="k"))).row_count == 1


async def test_duplicates_at_the_same_time_happen_once(engine):
    await make_tenant(engine, users=0)
    write = Operation(
        query="insert into users (id, email) select coalesce(max(id), 0) + 1, 'x' || count(*) "
        "from users returning id",
        idempotency_key="once",
    )

    results = await asyncio.gather(*(engine.execute("acme", write) for _ in range(12)))

    assert [result.rows for result in results] == [[[1]]] * 12
    assert (await ask(engine, "acme", COUNT)).rows == [[1]]


async def test_a_key_covers_an_atomic_batch_and_single_operations_of_another(engine):
    await make_tenant(engine, users=0)
    atomic = [add(1, idempotency_key="all"), add(2), Operation(query=COUNT)]
    first = await engine.execute_batch("acme", atomic, atomic=True)
    assert await engine.execute_batch("acme", atomic, atomic=True) == first
    with pytest.raises(InvalidInputError, match="first"):
        await engine.execute_batch("acme", [add(5), add(6, idempotency_key="z")], atomic=True)

    apart = [add(3, idempotency_key="three"), add(1), add(4), Operation(query=COUNT)]
    one = await engine.execute_batch("acme", apart)
    two = await engine.execute_batch("acme", apart)

    assert [type(item) for item in one] == [QueryResult, ConstraintError, QueryResult, QueryResult]
    assert [type(item) for item in two] == [
        QueryResult,
        ConstraintError,
        ConstraintError,
        QueryResult,
    ]
    assert one[3].rows == two[3].rows == [[4]]


async def test_keys_are_bounded_and_some_are_kept_for_the_runtime(engine):
    await make_tenant(engine, users=0)

    for key in ("", "x" * 256, "tenancy:seed", "a\nb"):
        with pytest.raises(InvalidInputError):
            await engine.execute("acme", add(1, idempotency_key=key))
    assert (await engine.execute("acme", add(1, idempotency_key="x" * 255))).row_count == 1


async def test_answers_are_forgotten_after_a_time(install):
    async with opened(install, idempotency_retention_s=0.001) as engine:
        await make_tenant(engine, users=0)
        for number in range(1, 101):
            await engine.execute("acme", add(number, idempotency_key=f"k{number}"))

        async with install.connected() as admin:
            kept = await admin.fetch("select key, request_hash from app.tenancy_idempotency")
        # The last one may be younger than a millisecond yet.
        old = {row["key"] for row in kept} - {"k100"}
        assert len(old) == 1, "the mark of the runtime itself stays"
        with pytest.raises(ConstraintError):
            await engine.execute("acme", add(1, idempotency_key="k1"))
