"""The statements that an action stands for, and what their results mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.history.call import (
    BUCKET_ITEMS,
    Account,
    Action,
    AddItem,
    Append,
    Balance,
    Entry,
    Items,
    ReadBank,
    ReadItems,
    ReadJournal,
    ReadList,
    ReadRegister,
    Swap,
    Transfer,
    Write,
)
from tenancy.data_isolation.core.types import Operation, QueryResult

#: The migration that makes the tables.
TABLES: Final = Path(__file__).with_name("tables.sql").read_text()
#: The tables, those with references before those that they refer to.
TABLE_NAMES: Final = (
    "history_lists",
    "history_items",
    "history_journal",
    "history_savings",
    "history_current",
    "history_registers",
)
CURRENT: Final = "current"
SAVINGS: Final = "savings"
#: Entries of the journal in one page of it.
JOURNAL_PAGE: Final = 2_000
_MOODS: Final = ("calm", "busy", "late")
_ENTRY: Final = "number, current_account, savings_account, to_savings, amount"

_APPEND: Final = """
insert into history_lists (key, elements) values ($1, array[$2::bigint])
on conflict (key) do update set elements = history_lists.elements || excluded.elements
returning cardinality(elements)
"""
_ADD: Final = """
insert into history_items (item, mood, tags, document, content) values ($1, $2, $3, $4, $5)
"""
_READ_ITEMS: Final = """
select item, bucket, mood, tags, document, content from history_items where bucket = $1
"""
_JOURNAL: Final = f"""
insert into history_journal ({_ENTRY}, current_version, savings_version)
select $1, c.account, s.account, $4, $5, c.version, s.version
from history_current c, history_savings s where c.account = $2 and s.account = $3
"""
_READ_JOURNAL: Final = f"""
select {_ENTRY}, current_version, savings_version, id
from history_journal where id > $1 order by id limit {JOURNAL_PAGE}
"""
_READ_BANK: Final = """
select 'current', account, balance, version from history_current
union all select 'savings', account, balance, version from history_savings
"""
_SWAP: Final = "update history_registers set value = $3 where key = $1 and value = $2"
_WRITE: Final = """
insert into history_registers (key, value) values ($1, $2)
on conflict (key) do update set value = excluded.value
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to execute, as one transaction, and how to read the results."""

    operations: Sequence[Operation]
    answer: Callable[[Sequence[QueryResult]], Any]


def request(action: Action) -> Request:
    """What the action stands for. `ReadJournal` is the first page only: see `journal_page`."""
    match action:
        case Append(key=key, value=value):
            return _one(_APPEND, [key, value], lambda result: result.rows[0][0])
        case ReadList(key=key):
            text = "select elements from history_lists where key = $1"
            return _one(text, [key], lambda result: tuple(result.rows[0][0] if result.rows else ()))
        case AddItem(item=item):
            return _one(_ADD, [item, *_columns(item)], _nothing)
        case ReadItems(bucket=bucket):
            return _one(_READ_ITEMS, [bucket], _items)
        case Transfer():
            return Request(operations=_transfer(action), answer=lambda results: None)
        case ReadBank():
            return _one(_READ_BANK, [], _balances)
        case ReadJournal():
            return journal_page(0)
        case Write(key=key, value=value):
            return _one(_WRITE, [key, value], _nothing)
        case Swap(key=key, expected=expected, value=value):
            return _one(_SWAP, [key, expected, value], lambda result: result.row_count == 1)
        case ReadRegister(key=key):
            text = "select value from history_registers where key = $1"
            return _one(text, [key], lambda result: result.rows[0][0] if result.rows else None)


def journal_page(after: int) -> Request:
    """The entries behind one id; the answer is the entries and the last id."""
    return _one(_READ_JOURNAL, [after], _entries)


def opening_statements(accounts: int, amount: int) -> list[Operation]:
    """Empty tables, and accounts from 1 that hold an amount each."""
    fill = "insert into {} (account, balance) select n, $2 from generate_series(1, $1::integer) n"
    return [
        *(Operation(query=f"delete from {name}") for name in TABLE_NAMES),
        Operation(query=fill.format("history_current"), params=[accounts, amount]),
        Operation(query=fill.format("history_savings"), params=[accounts, amount]),
    ]


def _one(text: str, params: list[Any], answer: Callable[[QueryResult], Any]) -> Request:
    return Request(
        operations=[Operation(query=text, params=params)],
        answer=lambda results: answer(results[0]),
    )


def _nothing(result: QueryResult) -> None:
    # An acknowledgement that changed nothing would not be one.
    assert result.row_count == 1


def _columns(item: int) -> list[Any]:
    """The columns of an item that follow from its number, in wire form."""
    content = hashlib.sha256(str(item).encode()).digest()
    words = [f"tag {item}", "", 'é"{,}\\', "null"][: item % 5]
    return [_MOODS[item % 3], words, {"item": item, "tags": words}, "\\x" + content.hex()]


def _items(result: QueryResult) -> Items:
    damaged = [
        row[0]
        for row in result.rows
        if row[1] != row[0] // BUCKET_ITEMS or row[2:] != _columns(row[0])
    ]
    return Items(tuple(row[0] for row in result.rows), tuple(damaged))


def _transfer(action: Transfer) -> list[Operation]:
    """Always the current account first, so that transfers wait for each other in one order."""
    to_savings = action.source.table == CURRENT
    current, savings = (
        (action.source, action.target) if to_savings else (action.target, action.source)
    )
    change = (
        "update history_{} set balance = balance + $2, version = version + 1 where account = $1"
    )
    amount = -action.amount if to_savings else action.amount
    return [
        Operation(query=change.format(CURRENT), params=[current.number, amount]),
        Operation(query=change.format(SAVINGS), params=[savings.number, -amount]),
        Operation(
            query=_JOURNAL,
            params=[action.number, current.number, savings.number, to_savings, action.amount],
        ),
    ]


def _balances(result: QueryResult) -> dict[Account, Balance]:
    return {
        Account(table, number): Balance(amount, version)
        for table, number, amount, version in result.rows
    }


def _entries(result: QueryResult) -> tuple[tuple[Entry, ...], int | None]:
    found = []
    for number, current, savings, to_savings, amount, *versions in result.rows:
        source, target = Account(CURRENT, current), Account(SAVINGS, savings)
        of_source, of_target = versions[:2]
        if not to_savings:
            source, target, of_source, of_target = target, source, of_target, of_source
        found.append(Entry(Transfer(number, source, target, amount), of_source, of_target))
    return tuple(found), result.rows[-1][-1] if result.rows else None
