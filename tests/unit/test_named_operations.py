"""Named operations: what a name stands for, and how data that does not fit is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settable_clock import SettableClock

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    LimitError,
    OperationNotFoundError,
    ParameterError,
    StatementForbiddenError,
    StatementSyntaxError,
)
from tenancy.data_isolation.engine.catalog_records import NamedOperation
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.named_operations import NamedOperations
from tenancy.data_isolation.engine.table_operations import table_named
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema


def relation(name: str, *columns: str, key: tuple[str, ...] = ("id",), **more) -> VisibleRelation:
    return VisibleRelation(name=name, columns=columns, primary_key=key, **more)


SCHEMA = VisibleSchema(
    relations={
        item.name: item
        for item in (
            relation("users", "id", "email", "name"),
            relation("categories", "id", "label"),
            relation("addresses", "id", "street"),
            relation("box", "id"),
            relation("order_items", "order_id", "line", "sku", key=("order_id", "line")),
            relation("Odd Table", "a b", key=("a b",)),
            relation("active_users", "id", key=(), view=True),
            relation("tenancy_idempotency", "key", key=("key",)),
            relation("tenancy_schema_version", "number", "checksum", key=("number",)),
        )
    }
)


class MemoryStore:
    """Registered operations in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, NamedOperation] = {}
        self.reads = 0

    async def named_operations(self, *, after=None, limit=100):
        self.reads += 1
        names = sorted(name for name in self.kept if after is None or name > after)
        return [self.kept[name] for name in names[:limit]]

    async def named_operation(self, name):
        if name not in self.kept:
            raise OperationNotFoundError
        return self.kept[name]

    async def add_named_operation(self, operation):
        return self.kept.setdefault(operation.name, operation) is operation

    async def set_named_operation(self, operation):
        self.kept[operation.name] = operation

    async def remove_named_operation(self, name):
        if self.kept.pop(name, None) is None:
            raise OperationNotFoundError


class KnownShapes:
    """Tables that no migration changes."""

    newest = SCHEMA

    async def look(self, *, now: bool) -> bool:
        return False


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def clock():
    return SettableClock()


@pytest.fixture
def operations(store, clock):
    return make(store, clock)


def make(store, clock, **settings) -> NamedOperations:
    given = Settings(**settings)
    guard = Guard(settings=given, schema=SCHEMA)
    return NamedOperations(
        settings=given, store=store, guard=guard, shapes=KnownShapes(), clock=clock
    )


# Registered


async def test_a_registered_name_runs_its_sql_with_values_from_the_data(operations):
    await operations.register("user_by_mail", "select id from users where email = :email")

    found = await operations.resolve("user_by_mail", {"email": "a@b", "query": "select 1"})

    assert found.query == "select id from users where email = :email"
    assert found.params == {"email": "a@b"}


async def test_a_registered_name_takes_params_of_either_kind(operations):
    await operations.register("user_by_id", "select email from users where id = $1")
    await operations.register("user_by_mail", "select id from users where email = :email")

    assert (await operations.resolve("user_by_id", {"params": [7]})).params == [7]
    by_mail = await operations.resolve("user_by_mail", {"params": {"email": "a@b"}})
    assert by_mail.params == {"email": "a@b"}


async def test_a_value_that_is_missing_is_named(operations):
    await operations.register("find", "select id from users where email = :email and name = :name")

    with pytest.raises(ParameterError, match="operation find needs name, which the data does not"):
        await operations.resolve("find", {"email": "a@b"})


async def test_a_name_is_replaced_only_when_that_is_said(operations):
    await operations.register("look", "select id from users")
    await operations.register("look", "select id from users")

    with pytest.raises(ConflictError, match="pass replace=True"):
        await operations.register("look", "select name from users")
    await operations.register("look", "select name from users", replace=True)

    assert (await operations.resolve("look", {})).query == "select name from users"
    assert [item.name for item in await operations.list()] == ["look"]


async def test_a_removed_name_stands_for_nothing(operations):
    await operations.register("look", "select id from users")
    await operations.resolve("look", {})
    await operations.remove("look")

    with pytest.raises(OperationNotFoundError):
        await operations.resolve("look", {})
    with pytest.raises(OperationNotFoundError):
        await operations.remove("look")


@pytest.mark.parametrize(
    ("name", "sql", "error"),
    [
        ("look", "drop table users", StatementForbiddenError),
        ("look", "select pg_read_file('x')", StatementForbiddenError),
        ("look", "select 1; select 2", StatementSyntaxError),
        ("look", "selec", StatementSyntaxError),
        ("Look Here", "select 1", InvalidInputError),
    ],
)
async def test_what_the_guard_refuses_cannot_be_registered(operations, store, name, sql, error):
    with pytest.raises(error):
        await operations.register(name, sql)
    assert store.kept == {}


async def test_so_many_operations_and_no_more_can_be_registered(store, clock):
    operations = make(store, clock, named_operations_max=2)
    await operations.register("a", "select 1")
    await operations.register("b", "select 1")

    with pytest.raises(LimitError, match="2 named operations already"):
        await operations.register("c", "select 1")
    await operations.register("b", "select 2", replace=True)


async def test_the_catalog_is_read_once_per_refresh_time(operations, store, clock):
    for _ in range(5):
        await operations.resolve("look", {"query": "select 1"})
    assert store.reads == 1

    store.kept["look"] = NamedOperation(name="look", sql="select 2")
    clock.pass_s(3)

    assert (await operations.resolve("look", {"query": "select 1"})).query == "select 2"


async def test_more_operations_than_one_page_are_all_known(operations, store):
    for number in range(250):
        store.kept[f"o{number}"] = NamedOperation(name=f"o{number}", sql="select 1")

    assert len(await operations.list()) == 250


# data["query"]


async def test_a_query_runs_as_it_is_and_other_keys_may_stay_unused(operations):
    found = await operations.resolve(
        "query_user_data", {"user_id": 123, "query": "SELECT * FROM users"}
    )

    assert (found.query, found.params) == ("SELECT * FROM users", ())


async def test_a_query_takes_its_params_or_the_other_keys(operations):
    by_number = {"query": "select id from users where id = $1", "params": [1]}
    by_name = {"query": "select id from users where id = :user_id", "user_id": 123, "more": 1}

    assert (await operations.resolve("look", by_number)).params == [1]
    assert (await operations.resolve("look", by_name)).params == {"user_id": 123}


@pytest.mark.parametrize(
    ("data", "error", "complaint"),
    [
        ({"query": "select :who"}, ParameterError, "the query needs who"),
        ({"query": "select $1"}, ParameterError, "1 numbered placeholders"),
        ({"query": 7}, InvalidInputError, "must be SQL text, not int"),
        ({"query": "drop table users"}, StatementForbiddenError, "DROP"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused(operations, data, error, complaint):
    with pytest.raises(error, match=complaint):
        await operations.resolve("look", data)


# <verb>_<entity>


@pytest.mark.parametrize(
    ("name", "data", "query", "params"),
    [
        (
            "create_user",
            {"email": "a@b", "name": None},
            'insert into "users" ("email", "name") values ($1, $2) returning "id", "email", "name"',
            ["a@b", None],
        ),
        ("create_box", {}, 'insert into "box" default values returning "id"', ()),
        ("get_user", {"id": 1}, 'select "id", "email", "name" from "users" where "id" = $1', [1]),
        (
            "get_order_item",
            {"line": 2, "order_id": 1},
            'select "order_id", "line", "sku" from "order_items" '
            'where "order_id" = $1 and "line" = $2',
            [1, 2],
        ),
        (
            "list_users",
            {},
            'select "id", "email", "name" from "users" order by "id" limit $1',
            [100],
        ),
        (
            "list_users",
            {"name": "Ann", "email": None, "limit": 5, "after": 7},
            'select "id", "email", "name" from "users" where "name" = $1 and "email" is null '
            'and ("id") > ($2) order by "id" limit $3',
            ["Ann", 7, 5],
        ),
        (
            "list_order_items",
            {"after": [1, 2], "limit": 3},
            'select "order_id", "line", "sku" from "order_items" '
            'where ("order_id", "line") > ($1, $2) order by "order_id", "line" limit $3',
            [1, 2, 3],
        ),
        (
            "list_users",
            {"offset": 20},
            'select "id", "email", "name" from "users" order by "id" limit $1 offset $2',
            [100, 20],
        ),
        (
            "update_user",
            {"id": 1, "name": None, "email": "c@d"},
            'update "users" set "name" = $1, "email" = $2 where "id" = $3 '
            'returning "id", "email", "name"',
            [None, "c@d", 1],
        ),
        (
            "delete_user",
            {"id": 1},
            'delete from "users" where "id" = $1 returning "id", "email", "name"',
            [1],
        ),
        (
            "upsert_order_item",
            {"order_id": 1, "line": 2, "sku": "x"},
            'insert into "order_items" ("order_id", "line", "sku") values ($1, $2, $3) '
            'on conflict ("order_id", "line") do update set "sku" = excluded."sku" '
            'returning "order_id", "line", "sku"',
            [1, 2, "x"],
        ),
        (
            "upsert_box",
            {"id": 1},
            'insert into "box" ("id") values ($1) on conflict ("id") do update '
            'set "id" = excluded."id" returning "id"',
            [1],
        ),
    ],
)
async def test_a_verb_and_an_entity_act_on_the_table(operations, name, data, query, params):
    found = await operations.resolve(name, data)

    assert (found.query, found.params) == (query, params)
    statement = Guard(settings=Settings(), schema=SCHEMA).check(found.query)
    assert len(statement.bind(found.params)) == len(params)


@pytest.mark.parametrize(
    ("entity", "table"),
    [
        ("user", "users"),
        ("users", "users"),
        ("category", "categories"),
        ("address", "addresses"),
        ("box", "box"),
        ("boxes", "box"),
        ("order_item", "order_items"),
        ("active_user", None),
        ("tenancy_idempotency", None),
        ("tenancy_schema_version", None),
        ("tenancy_schema_versions", None),
        ("", None),
        ("s", None),
        ("y", None),
    ],
)
def test_an_entity_means_the_table_of_that_name_in_either_number(entity, table):
    found = table_named(entity, SCHEMA)

    assert (found.name if found else None) == table


def test_the_table_itself_comes_before_its_other_number():
    both = VisibleSchema(relations={name: relation(name, "id") for name in ("user", "users")})

    assert [table_named(name, both).name for name in ("user", "users")] == ["user", "users"]


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("create_user", {"mail": 1}, "users has no column mail; it has id, email, name"),
        ("create_user", {"tenant_id": 1}, "users has no column tenant_id"),
        ("get_user", {}, "get of users needs its primary key; the data lacks id"),
        ("get_user", {"id": None}, "the data lacks id"),
        ("get_user", {"id": 1, "name": "x"}, r"takes its primary key \(id\) and nothing else"),
        ("get_order_item", {"line": 1}, "the data lacks order_id"),
        ("delete_user", {"name": "x"}, "the data lacks id"),
        ("delete_user", {"id": 1, "name": "x"}, "nothing else, not name"),
        ("update_user", {"id": 1}, "changes nothing; give one of email, name"),
        ("update_user", {"name": "x"}, "the data lacks id"),
        ("upsert_user", {"name": "x"}, "the data lacks id"),
        ("list_users", {"size": 1}, "has no column size.* and takes limit, offset, after"),
        ("list_users", {"limit": 0}, "limit must be a whole number from 1 to 10000"),
        ("list_users", {"limit": 10_001}, "limit must be a whole number from 1 to 10000"),
        ("list_users", {"limit": "5"}, "limit must be a whole number"),
        ("list_users", {"limit": True}, "limit must be a whole number"),
        ("list_users", {"offset": -1}, "offset must be a whole number"),
        ("list_users", {"offset": 1, "after": 1}, "either after or offset"),
        ("list_order_items", {"after": 1}, "after must be a primary key of order_items: order_id"),
        ("list_order_items", {"after": [1]}, "after must be a primary key"),
        ("list_order_items", {"after": {"line": 1}}, "after must be a primary key"),
    ],
)
async def test_data_that_does_not_fit_the_verb_is_refused(operations, name, data, complaint):
    with pytest.raises(ParameterError, match=complaint):
        await operations.resolve(name, data)


# `query` is no key of a row but the statement itself, as other tests have it.
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda key: key != "query"),
        st.none() | st.integers(),
        max_size=3,
    )
)
async def test_no_key_of_the_data_gets_into_the_text(data):
    operations = make(MemoryStore(), SettableClock())
    columns = {"id", "email", "name"}
    try:
        found = await operations.resolve("create_user", data)
    except ParameterError:
        assert not set(data) <= columns
        return
    assert set(data) <= columns
    assert found.query.startswith('insert into "users"')


async def test_a_name_that_stands_for_nothing_is_an_error_that_lists_what_exists(operations):
    await operations.register("report", "select 1")
    with pytest.raises(OperationNotFoundError) as caught:
        await operations.resolve("stream_event", {})

    told = str(caught.value)
    assert "there is no operation stream_event. Registered: report." in told
    assert "create, get, list, update, delete, upsert followed by _ and a table: " in told
    assert "users" in told
    assert "active_users" not in told
    assert "tenancy_" not in told


async def test_the_runtimes_own_tables_stand_for_nothing(operations):
    with pytest.raises(OperationNotFoundError) as caught:
        await operations.resolve("create_tenancy_schema_version", {"x": 1})

    assert "checksum" not in str(caught.value)


async def test_the_list_of_what_exists_is_bounded(operations, store):
    for number in range(30):
        store.kept[f"o{number:02}"] = NamedOperation(name=f"o{number:02}", sql="select 1")
    with pytest.raises(OperationNotFoundError, match="o19 and 10 more"):
        await operations.resolve("get_shelf", {})


async def test_without_a_schema_no_entity_exists(store):
    settings = Settings()
    shapes = KnownShapes()
    shapes.newest = VisibleSchema()
    operations = NamedOperations(
        settings=settings, store=store, guard=Guard(settings=settings), shapes=shapes
    )
    with pytest.raises(OperationNotFoundError, match="followed by _ and a table: none"):
        await operations.resolve("get_user", {"id": 1})
