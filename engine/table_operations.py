"""Operations on a tenant's table by what it is called: create, get, list, update, delete, upsert.

Columns and keys are those that tenants see. Every value is a parameter, every name a quoted
identifier that the schema has; a key that is neither a column nor a word of the verb is an error.
The words of `list` (limit, offset, after) count for more than columns of the same name.
"""

# ruff: noqa: S608 - the texts are made of quoted identifiers that the schema has, and of `$n`.

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tenancy.data_isolation.core.errors import ParameterError
from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.core.types import Operation
from tenancy.data_isolation.engine.tenant_column import is_runtime_name
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

#: Rows that `list` gives when no limit is asked for.
_LIST_ROWS = 100
_LIST_WORDS = ("limit", "offset", "after")
_OFFSET_MAX = 2**31


def table_named(entity: str, schema: VisibleSchema) -> VisibleRelation | None:
    """The table that an entity's name means: itself first, then its plural, then its singular."""
    known = (schema.relations.get(name) for name in _spellings(entity))
    return next((item for item in known if item is not None and has_operations(item)), None)


def has_operations(relation: VisibleRelation) -> bool:
    """Whether verbs act on a relation: a table of the user's schema, not one of the runtime."""
    return not relation.view and not is_runtime_name(relation.name)


def table_operation(
    verb: str, table: VisibleRelation, data: Mapping[str, Any], *, rows_max: int
) -> Operation:
    """What a verb of `VERBS` does to a table with this data. Raises `ParameterError`."""
    _check_keys(verb, table, data)
    return _BUILDERS[verb](table, data, rows_max)


def _create(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    if not data:
        return Operation(
            query=f"insert into {_quoted(table.name)} default values returning {_all(table)}"
        )
    return Operation(
        query=f"{_insert(table, data)} returning {_all(table)}", params=list(data.values())
    )


def _get(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    key = _key("get", table, data)
    _check_only_key("get", table, data)
    return Operation(
        query=f"select {_all(table)} from {_quoted(table.name)} where {_equal(key)}",
        params=list(key.values()),
    )


def _list(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    words = {key: data[key] for key in _LIST_WORDS if data.get(key) is not None}
    filters = {key: value for key, value in data.items() if key not in _LIST_WORDS}
    if "after" in words and "offset" in words:
        raise ParameterError("give either after or offset, not both")
    params: list[Any] = [value for value in filters.values() if value is not None]
    conditions = [_equal(filters)] if filters else []
    order = ", ".join(_quoted(name) for name in table.primary_key)
    if "after" in words:
        params += _after(table, words["after"])
        first = len(params) - len(table.primary_key) + 1
        marks = ", ".join(f"${first + index}" for index in range(len(table.primary_key)))
        conditions.append(f"({order}) > ({marks})")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    params.append(_whole("limit", words.get("limit", min(_LIST_ROWS, rows_max)), 1, rows_max))
    text = f"select {_all(table)} from {_quoted(table.name)}{where} order by {order}"
    text += f" limit ${len(params)}"
    if "offset" in words:
        params.append(_whole("offset", words["offset"], 0, _OFFSET_MAX))
        text += f" offset ${len(params)}"
    return Operation(query=text, params=params)


def _update(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    key = _key("update", table, data)
    changes = {name: value for name, value in data.items() if name not in key}
    if not changes:
        raise ParameterError(
            f"update of {table.name} changes nothing; give one of {_names(table, without=key)}"
        )
    numbered = [f"{_quoted(name)} = ${index}" for index, name in enumerate(changes, 1)]
    return Operation(
        query=f"update {_quoted(table.name)} set {', '.join(numbered)} "
        f"where {_equal(key, first=len(changes) + 1)} returning {_all(table)}",
        params=[*changes.values(), *key.values()],
    )


def _delete(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    key = _key("delete", table, data)
    _check_only_key("delete", table, data)
    return Operation(
        query=f"delete from {_quoted(table.name)} where {_equal(key)} returning {_all(table)}",
        params=list(key.values()),
    )


def _upsert(table: VisibleRelation, data: Mapping[str, Any], rows_max: int) -> Operation:
    key = _key("upsert", table, data)
    # With nothing but the key, the row is written over itself, so that it is returned.
    changed = [name for name in data if name not in key] or list(key)
    target = ", ".join(_quoted(name) for name in key)
    sets = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in changed)
    return Operation(
        query=f"{_insert(table, data)} on conflict ({target}) do update set {sets} "
        f"returning {_all(table)}",
        params=list(data.values()),
    )


_BUILDERS: dict[str, Callable[[VisibleRelation, Mapping[str, Any], int], Operation]] = {
    "create": _create,
    "get": _get,
    "list": _list,
    "update": _update,
    "delete": _delete,
    "upsert": _upsert,
}
#: The words that a name may begin with.
VERBS = tuple(_BUILDERS)


def _insert(table: VisibleRelation, data: Mapping[str, Any]) -> str:
    columns = ", ".join(_quoted(name) for name in data)
    marks = ", ".join(f"${index}" for index in range(1, len(data) + 1))
    return f"insert into {_quoted(table.name)} ({columns}) values ({marks})"


def _equal(values: Mapping[str, Any], *, first: int = 1) -> str:
    """Conditions on columns; what is None takes no parameter."""
    parts = []
    for name, value in values.items():
        if value is None:
            parts.append(f"{_quoted(name)} is null")
        else:
            parts.append(f"{_quoted(name)} = ${first}")
            first += 1
    return " and ".join(parts)


def _all(table: VisibleRelation) -> str:
    return ", ".join(_quoted(name) for name in table.columns)


def _after(table: VisibleRelation, value: Any) -> list[Any]:
    """The key that a page starts behind, one value for each column of the primary key."""
    key = table.primary_key
    if isinstance(value, Mapping):
        if set(value) == set(key):
            return [value[name] for name in key]
    elif len(key) == 1 and (isinstance(value, str) or not isinstance(value, Sequence)):
        return [value]
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(key):
        return list(value)
    raise ParameterError(f"after must be a primary key of {table.name}: {', '.join(key)}")


def _whole(name: str, value: Any, smallest: int, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ParameterError(f"{name} must be a whole number from {smallest} to {largest}")
    return value


def _key(verb: str, table: VisibleRelation, data: Mapping[str, Any]) -> dict[str, Any]:
    """The primary key's values, all of them."""
    missing = [name for name in table.primary_key if data.get(name) is None]
    if missing or not table.primary_key:
        raise ParameterError(
            f"{verb} of {table.name} needs its primary key; the data lacks {', '.join(missing)}"
        )
    return {name: data[name] for name in table.primary_key}


def _check_only_key(verb: str, table: VisibleRelation, data: Mapping[str, Any]) -> None:
    extra = [name for name in data if name not in table.primary_key]
    if extra:
        raise ParameterError(
            f"{verb} of {table.name} takes its primary key ({', '.join(table.primary_key)}) and "
            f"nothing else, not {', '.join(extra[:5])}; list takes other columns"
        )


def _check_keys(verb: str, table: VisibleRelation, data: Mapping[str, Any]) -> None:
    words = _LIST_WORDS if verb == "list" else ()
    unknown = [str(key) for key in data if key not in table.columns and key not in words]
    if unknown:
        more = f" and takes {', '.join(words)}" if words else ""
        raise ParameterError(
            f"{table.name} has no column {', '.join(item[:63] for item in unknown[:5])}; "
            f"it has {_names(table)}{more}"
        )


def _names(table: VisibleRelation, *, without: Collection[str] = ()) -> str:
    return ", ".join(name for name in table.columns if name not in without)


def _quoted(name: str) -> str:
    return quote_identifier(name)


def _spellings(entity: str) -> Iterator[str]:
    """An entity as it is, in the plural, and in the singular (English, regular nouns)."""
    yield entity
    if entity.endswith("y") and entity[-2:-1] not in "aeiou":
        yield f"{entity[:-1]}ies"
    elif entity.endswith(("s", "x", "z", "ch", "sh")):
        yield f"{entity}es"
    else:
        yield f"{entity}s"
    if entity.endswith("ies"):
        yield f"{entity[:-3]}y"
    if entity.endswith("s"):
        yield entity[:-1]
    if entity.endswith("es"):
        yield entity[:-2]
