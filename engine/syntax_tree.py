"""PostgreSQL's syntax tree of SQL text: parsing, walking, and writing it back.

Rules this module keeps:

* Parsing goes through `parse`, which turns every way in which text can fail to be SQL into a
  `StatementSyntaxError` that says where. The parser is C code that recurses without looking at its
  stack, so text that could nest too deeply for it is refused before it gets there.
* Walking never recurses, so no tree is too deep for it.
* A tree is written back only through `write`, which parses the text again and refuses it unless
  exactly the same tree comes out.

A tree is made of protobuf messages as libpg_query defines them (its `pg_query.proto` mirrors
PostgreSQL's `parsenodes.h` and `primnodes.h`). Lists hold `Node` wrappers; `unwrap` opens one, and
everything here yields what is inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

from tenancy.data_isolation.core.errors import StatementForbiddenError, StatementSyntaxError

# Imported by name, because the type stub that postgast ships is not valid Python (it has an
# attribute called None) and the type checker stops at it.
postgast: Any = import_module("postgast")
#: The classes and enumerations of the tree's messages.
pb: Any = import_module("postgast.pg_query_pb2")
_protobuf: Any = import_module("google.protobuf.message")
DecodeError: Any = _protobuf.DecodeError

#: A message of a tree: `pb.SelectStmt`, `pb.ColumnRef`, ...
Node: TypeAlias = Any
#: A `pb.ParseResult`: statements with their places in the text.
Tree: TypeAlias = Any
#: A `pb.ScanToken`: kind, keyword kind, start and end.
Token: TypeAlias = Any

#: Tokens on one path from the root of a tree to a leaf, and brackets around one token. The parser's
#: C code takes up to a kilobyte of stack for a level; with these bounds it stays within 2 MB.
_PATH_TOKENS_MAX: Final = 5_000
_BRACKETS_MAX: Final = 500
#: Shorter text cannot nest so deeply that it matters.
_SHALLOW_CHARACTERS: Final = 2_000
_TOO_DEEP: Final = "the statement nests too deeply; split it, or use lists in place of long chains"

_WRAPPER: Final = pb.Node
_CONSTANT: Final = pb.A_Const
#: What a repeated field of messages is.
_LIST: Final = type(pb.List().items)
_SCALARS: Final = frozenset({str, int, bool, float, bytes})

_OPENING: Final = frozenset({pb.ASCII_40, pb.ASCII_91})
_CLOSING: Final = frozenset({pb.ASCII_41, pb.ASCII_93})
_SET_OPERATIONS: Final = frozenset({pb.UNION, pb.INTERSECT, pb.EXCEPT})

_PLACES: Final = frozenset(
    {
        "location",
        "name_location",
        "stmt_location",
        "stmt_len",
        "list_start",
        "list_end",
        "rexpr_list_start",
        "rexpr_list_end",
    }
)


def parse(sql: str) -> Tree:
    """The tree of `sql`, which may hold any number of statements.

    Raises `StatementSyntaxError` with the line and column.
    """
    check_text(sql)
    if len(sql) > _SHALLOW_CHARACTERS:
        check_depth(sql, scan(sql))
    try:
        return postgast.parse(sql)
    except postgast.PgQueryError as error:
        raise _syntax_error(sql, error) from None
    except DecodeError:
        # Protobuf's own limit of 100 levels, about 45 operators in a chain.
        raise StatementSyntaxError(_TOO_DEEP, "54001") from None
    except UnicodeDecodeError:
        raise StatementSyntaxError("the text is not SQL that PostgreSQL can read") from None


def scan(sql: str) -> list[Token]:
    """The tokens of `sql`, comments included; their positions are byte offsets into its UTF-8."""
    check_text(sql)
    try:
        return list(postgast.scan(sql).tokens)
    except postgast.PgQueryError as error:
        raise _syntax_error(sql, error) from None
    except UnicodeDecodeError:
        raise StatementSyntaxError("the text is not SQL that PostgreSQL can read") from None


def check_text(sql: str) -> None:
    """Refuse what cannot reach the parser: it reads C strings in UTF-8."""
    if "\x00" in sql:
        line, column = _line_and_column(sql, sql.index("\x00"))
        raise StatementSyntaxError(
            f"the text holds a NUL character at line {line}, column {column}; remove it", "22021"
        )
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        line, column = _line_and_column(sql, error.start)
        raise StatementSyntaxError(
            f"the text holds half of a surrogate pair at line {line}, column {column}; "
            "send well-formed Unicode",
            "22021",
        ) from None


def check_depth(sql: str, tokens: Iterable[Token]) -> None:
    """Refuse text whose tree could be deeper than the C code's stack carries.

    The grammar makes a node's children out of the tokens of its own bracket, and lists are flat, so
    the tokens since the last comma, summed over the brackets around a token, bound its depth. Only
    set operations nest across commas; they are counted separately.
    """
    outer: list[tuple[int, int]] = []
    total = since_comma = set_operations = 0
    for token in tokens:
        kind = token.token
        if kind in _OPENING:
            outer.append((since_comma, set_operations))
            total += 1
            since_comma = set_operations = 0
        elif kind in _CLOSING:
            total -= since_comma + set_operations
            since_comma, set_operations = outer.pop() if outer else (-1, 0)
            since_comma += 1
        elif kind == pb.ASCII_44:
            total -= since_comma
            since_comma = 0
        elif kind in _SET_OPERATIONS:
            total += 1
            set_operations += 1
        else:
            total += 1
            since_comma += 1
        if total > _PATH_TOKENS_MAX or len(outer) > _BRACKETS_MAX:
            raise StatementSyntaxError(f"{_TOO_DEEP} ({position(sql, token.start)})", "54001")


def write(tree: Tree) -> str:
    """The SQL text of `tree`.

    Raises `StatementForbiddenError` when that text would not give the same tree again: the writer
    is libpg_query's, and a mistake of it must not change what a statement means.
    """
    try:
        text: str = postgast.deparse(tree)
        again = postgast.parse(text)
    except (postgast.PgQueryError, DecodeError, UnicodeDecodeError):
        again = None
    if again is None or without_places(again) != without_places(tree):
        raise StatementForbiddenError(
            "the statement needs a rewrite that cannot be written back exactly; name its columns "
            "in place of `*`, whole rows and NATURAL joins, and simplify it"
        )
    return text


def fingerprint(sql: str) -> str:
    """Sixteen digits that are equal for statements that differ only in values.

    `sql` was parsed before.
    """
    found: str = postgast.fingerprint(sql).hex
    return found


def without_places(tree: Tree) -> bytes:
    """`tree` as bytes in which two trees of differently laid-out text are equal."""
    copy = pb.ParseResult()
    copy.CopyFrom(tree)
    for node in nodes(copy):
        for name in _place_fields(node.DESCRIPTOR):
            node.ClearField(name)
    found: bytes = copy.SerializeToString(deterministic=True)
    return found


def statement_nodes(tree: Tree) -> list[Node]:
    """The statements of `tree`, unwrapped."""
    return [unwrap(raw.stmt) for raw in tree.stmts if raw.HasField("stmt")]


def nodes(*roots: Node) -> Iterator[Node]:
    """Every message below and including `roots`, in the order of the text as far as lists go.

    A constant is a leaf: what it holds is a value and not a name.
    """
    pending = [unwrap(root) for root in reversed(roots)]
    while pending:
        node = pending.pop()
        yield node
        if type(node) is not _CONSTANT:
            found = [unwrap(holder) for holder in held(node)]
            found.reverse()
            pending += [inner for inner in found if type(inner) is not _WRAPPER]


def children(node: Node) -> Iterator[Node]:
    """The messages that `node` holds directly, unwrapped; empty `Node` wrappers are left out."""
    for holder in held(node):
        inner = unwrap(holder)
        if type(inner) is not _WRAPPER:
            yield inner


def held(node: Node) -> list[Node]:
    """The messages that `node` holds directly, each still in its wrapper if it has one."""
    found: list[Node] = []
    for _, value in node.ListFields():
        kind = type(value)
        if kind is _LIST:
            found += value
        elif kind not in _SCALARS and is_message(value):
            found.append(value)
    return found


def is_message(value: object) -> bool:
    """Whether the value of a field is a message, and not a list of them."""
    return isinstance(value, _protobuf.Message)


def unwrap(node: Node) -> Node:
    """What a `Node` wrapper holds; any other message is returned as it is."""
    if type(node) is _WRAPPER:
        kind = node.WhichOneof("node")
        if kind is not None:
            return getattr(node, kind)
    return node


def type_name(node: Node) -> str:
    """The name of a node's type, such as `SelectStmt`."""
    name: str = node.DESCRIPTOR.name
    return name


def words(names: Iterable[Node]) -> tuple[str, ...]:
    """The strings of a list of `String` nodes; other nodes (`*`) are left out."""
    return tuple(name.string.sval for name in names if name.HasField("string"))


def function_name(call: Node) -> tuple[str | None, str]:
    """Schema and name of a called function; the schema is None where the text has none."""
    parts = words(call.funcname)
    return (".".join(parts[:-1]) or None, parts[-1]) if parts else (None, "")


def cast_type(name: Node) -> tuple[str | None, str]:
    """Schema and name of a type; the grammar gives `pg_catalog` to `int` and its like."""
    parts = words(name.names)
    return (".".join(parts[:-1]) or None, parts[-1]) if parts else (None, "")


def is_star(node: Node) -> bool:
    """Whether a node, or what a wrapper holds, is `*` or `t.*`."""
    inner = unwrap(node)
    return isinstance(inner, pb.ColumnRef) and bool(inner.fields[-1].HasField("a_star"))


def is_row_expansion(node: Node) -> bool:
    """Whether a node, or what a wrapper holds, is `(expression).*`."""
    inner = unwrap(node)
    return isinstance(inner, pb.A_Indirection) and bool(inner.indirection[-1].HasField("a_star"))


def position(sql: str, byte_offset: int) -> str:
    """`line 3, column 7` for a byte offset, which is what nodes and tokens carry."""
    before = sql.encode()[: max(byte_offset, 0)].decode(errors="ignore")
    line, column = _line_and_column(sql, len(before))
    return f"line {line}, column {column}"


def column_ref(*names: str) -> Node:
    """A reference to a column: `name`, or `alias.name`."""
    node = pb.Node()
    for name in names:
        node.column_ref.fields.add().string.sval = name
    return node


def _line_and_column(sql: str, index: int) -> tuple[int, int]:
    return sql.count("\n", 0, index) + 1, index - sql.rfind("\n", 0, index)


def _syntax_error(sql: str, error: postgast.PgQueryError) -> StatementSyntaxError:
    # The parser counts characters, from 1.
    line, column = _line_and_column(sql, max(error.cursorpos - 1, 0))
    if error.message.startswith("memory exhausted"):
        return StatementSyntaxError(f"{_TOO_DEEP} (line {line}, column {column})", "54001")
    message = error.message if len(error.message) <= 200 else error.message[:197] + "..."
    return StatementSyntaxError(f"{message} (line {line}, column {column})", "42601")


@cache
def _place_fields(descriptor: Any) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.name in _PLACES)
