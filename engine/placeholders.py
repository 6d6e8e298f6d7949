"""Placeholders of statements: `$1` is PostgreSQL's own, `:name` is turned into it here.

Rules this module keeps:

* The text is cut by PostgreSQL's own scanner, so a colon in a string, a comment, a quoted name, a
  cast (`::`) or an assignment (`:=`) is never taken for a placeholder.
* A colon starts a placeholder when a word follows it directly, unless it separates two operands:
  in brackets after an operand (`a[1:n]`), or directly after one (`json_object('k':v)`).
* A statement uses one kind of placeholder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.errors import StatementSyntaxError
from tenancy.data_isolation.engine.syntax_tree import Token, pb, position, scan

_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_COMMENTS: Final = frozenset({pb.SQL_COMMENT, pb.C_COMMENT})
#: Tokens with which an operand ends, besides words.
_OPERAND_ENDS: Final = frozenset(
    {
        pb.SCONST,
        pb.USCONST,
        pb.BCONST,
        pb.XCONST,
        pb.ICONST,
        pb.FCONST,
        pb.PARAM,
        pb.UIDENT,
        pb.IDENT,
        pb.ASCII_41,
        pb.ASCII_93,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberedText:
    """A text with `$n` placeholders only; `names` are those that it had instead, in their order."""

    text: str
    names: tuple[str, ...] | None


def number_placeholders(sql: str) -> NumberedText:
    """`sql` with `$n` in place of `:name`; one name is one number.

    Raises `StatementSyntaxError` when both kinds occur.
    """
    if ":" not in sql:
        return NumberedText(text=sql, names=None)
    source = sql.encode()
    tokens = [token for token in scan(sql) if token.token not in _COMMENTS]
    found = _named(source, tokens)
    if not found:
        return NumberedText(text=sql, names=None)
    for token in tokens:
        if token.token == pb.PARAM:
            raise StatementSyntaxError(
                f"the statement mixes $n and :name placeholders ({position(sql, token.start)}); "
                "use one kind"
            )
    names: list[str] = []
    parts: list[bytes] = []
    done = 0
    for colon, word in found:
        name = source[word.start : word.end].decode()
        if name not in names:
            names.append(name)
        # Padded, so that positions in errors are those of the text as it came.
        number = f"${names.index(name) + 1}".encode().ljust(word.end - colon.start)
        parts += [source[done : colon.start], number]
        done = word.end
    parts.append(source[done:])
    return NumberedText(text=b"".join(parts).decode(), names=tuple(names))


def _named(source: bytes, tokens: list[Token]) -> list[tuple[Token, Token]]:
    """The colon and the word of every placeholder."""
    found: list[tuple[Token, Token]] = []
    brackets: list[bool] = []
    previous: Token = None
    taken = -1
    for index, token in enumerate(tokens):
        kind = token.token
        if kind in (pb.ASCII_40, pb.ASCII_91):
            brackets.append(kind == pb.ASCII_91)
        elif kind in (pb.ASCII_41, pb.ASCII_93) and brackets:
            brackets.pop()
        elif kind == pb.ASCII_58 and index + 1 < len(tokens):
            word = tokens[index + 1]
            separates = previous is not None and _separates(
                source, previous, token, bool(brackets and brackets[-1]), taken == index - 1
            )
            if word.start == token.end and not separates and _is_name(source, word):
                found.append((token, word))
                taken = index + 1
        previous = token
    return found


def _separates(
    source: bytes, previous: Token, colon: Token, in_brackets: bool, after_placeholder: bool
) -> bool:
    """Whether a colon stands between two operands."""
    touching: bool = previous.end == colon.start
    operand = (
        after_placeholder
        or previous.token in _OPERAND_ENDS
        or (touching and _is_name(source, previous))
    )
    return operand and (touching or in_brackets)


def _is_name(source: bytes, token: Token) -> bool:
    return _NAME.fullmatch(source, token.start, token.end) is not None
