"""Names and numbers by which things are known, and the only place that makes or quotes them.

Rules this module keeps:

* A `TenantId` is the customer's word and never becomes part of a database object's name.
* Names of database objects are opaque (random), at most 63 bytes, and lower-case ASCII, so that
  quoting never changes them and truncation never joins two of them.
"""

from __future__ import annotations

import re
import secrets
from typing import NewType

from tenancy.data_isolation.core.errors import InvalidInputError

#: A customer, as the outside names it: `[a-z0-9][a-z0-9_-]{0,62}`.
TenantId = NewType("TenantId", str)
#: The compact number that stands for a tenant inside the databases (bigint, never reused).
TenantNo = NewType("TenantNo", int)
#: A PostgreSQL server as the catalog names it.
ServerName = NewType("ServerName", str)
#: A region tag of a server.
Region = NewType("Region", str)
#: Names of database objects.
DatabaseName = NewType("DatabaseName", str)
SchemaName = NewType("SchemaName", str)
RoleName = NewType("RoleName", str)
#: A placement's generation. Only rises.
Epoch = NewType("Epoch", int)

#: What a tenant id and a word are, as regular expressions of the whole text.
TENANT_ID_PATTERN = "[a-z0-9][a-z0-9_-]{0,62}"
WORD_PATTERN = "[a-z][a-z0-9_-]{0,62}"
_TENANT_ID = re.compile(TENANT_ID_PATTERN)
_WORD = re.compile(WORD_PATTERN)


def parse_tenant_id(text: object) -> TenantId:
    """The tenant id that `text` spells; `InvalidInputError` when it spells none."""
    if not isinstance(text, str) or not _TENANT_ID.fullmatch(text):
        raise InvalidInputError(
            f"tenant id {_shown(text)} is not valid: use 1 to 63 of a-z, 0-9, '_' and '-', "
            "starting with a letter or a digit"
        )
    return TenantId(text)


def parse_word(text: object, what: str) -> str:
    """A name of ours (server, region, operation): a lower-case word, or `InvalidInputError`."""
    if not isinstance(text, str) or not _WORD.fullmatch(text):
        raise InvalidInputError(
            f"{what} {_shown(text)} is not valid: use 1 to 63 of a-z, 0-9, '_' and '-', "
            "starting with a letter"
        )
    return text


def opaque_name(prefix: str = "t") -> str:
    """A fresh name for a database object: prefix, underscore, 80 random bits in hexadecimal."""
    return f"{prefix}_{secrets.token_hex(10)}"


def quote_identifier(name: str) -> str:
    """`name` as a quoted SQL identifier (PostgreSQL manual, 4.1.1)."""
    if "\x00" in name or not name or len(name.encode()) > 63:
        raise InvalidInputError(f"{_shown(name)} cannot be the name of a database object")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """`text` as an SQL string, however the server reads a backslash (PostgreSQL manual, 4.1.2)."""
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"


def _shown(value: object) -> str:
    """`value` for an error message: quoted, and cut so that a message stays a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
