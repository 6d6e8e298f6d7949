"""The types of one PostgreSQL database as far as they are known, and how their values travel.

A column says only the number of its type (OID). Numbers below 16384 are PostgreSQL's own and the
same everywhere; the common ones are known from the start. The others are asked for, once per
database and process (`sql/types.sql`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.engine import values
from tenancy.data_isolation.engine.values import Decode, Encode

#: The type of a result that has no value (`select pg_advisory_unlock_all()`).
_RECORD: Final = 2249
#: Types remembered per database beyond PostgreSQL's own; those used longest ago are forgotten.
_TYPES_MAX: Final = 20_000


class TypeSort(StrEnum):
    """How the values of a type are made up. The letters are those of `sql/types.sql`."""

    SCALAR = "s"
    ARRAY = "a"
    COMPOSITE = "c"
    DOMAIN = "d"


@dataclass(frozen=True, kw_only=True, slots=True)
class PgType:
    """A type. `part` is an array's element or a domain's base; `parts` are a composite's."""

    oid: int
    name: str
    sort: TypeSort = TypeSort.SCALAR
    part: int = 0
    delimiter: str = ","
    names: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def needs(self) -> tuple[int, ...]:
        """The types that must be known before values of this one can be read."""
        match self.sort:
            case TypeSort.ARRAY | TypeSort.DOMAIN:
                return (self.part,)
            case TypeSort.COMPOSITE:
                return self.parts
            case TypeSort.SCALAR:
                return ()


class TypeMap:
    """The types of one database. No I/O; belongs to one event loop."""

    def __init__(self) -> None:
        self._types: OrderedDict[int, PgType] = OrderedDict()
        self._names: OrderedDict[tuple[int, int], str] = OrderedDict()
        self._decoders: dict[int, Decode] = {}
        self._encoders: dict[int, Encode] = {}

    def missing(self, oids: Iterable[int]) -> set[int]:
        """Those of `oids`, and of the types they are made of, that are not known."""
        unknown: set[int] = set()
        seen: set[int] = set()
        waiting = list(oids)
        while waiting:
            oid = waiting.pop()
            if oid in seen:
                continue
            seen.add(oid)
            known = self._find(oid)
            if known is None:
                unknown.add(oid)
            else:
                waiting.extend(known.needs)
        return unknown

    def add(self, types: Iterable[PgType]) -> None:
        """Remember types. What was built upon an earlier form of one is built anew."""
        for item in types:
            self._types[item.oid] = item
        while len(self._types) > _TYPES_MAX:
            self._types.popitem(last=False)
        self._decoders.clear()
        self._encoders.clear()

    def clear(self) -> None:
        """Forget all but PostgreSQL's own: the schema has changed, and types with it."""
        self._types.clear()
        self._names.clear()
        self._decoders.clear()
        self._encoders.clear()

    def unnamed(self, columns: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those of `columns` (type, modifier) whose name together is not known."""
        return {key for key in columns if key[1] != -1 and key not in self._names}

    def add_names(self, names: Iterable[tuple[int, int, str]]) -> None:
        """Remember what types are called together with a modifier."""
        for oid, modifier, name in names:
            self._names[oid, modifier] = name
        while len(self._names) > _TYPES_MAX:
            self._names.popitem(last=False)

    def name(self, oid: int, modifier: int = -1) -> str:
        """What a type is called, as `format_type` spells it."""
        if modifier != -1 and (oid, modifier) in self._names:
            return self._names[oid, modifier]
        known = self._find(oid)
        return known.name if known else "???"

    def decoder(self, oid: int) -> Decode:
        """What turns PostgreSQL's text of the type into wire form."""
        found = self._decoders.get(oid)
        if found is None:
            found = self._decoders[oid] = self._make_decoder(oid)
        return found

    def encoder(self, oid: int) -> Encode:
        """What turns a parameter into PostgreSQL's text of the type."""
        found = self._encoders.get(oid)
        if found is None:
            found = self._encoders[oid] = self._make_encoder(oid)
        return found

    def _find(self, oid: int) -> PgType | None:
        return _BUILT_IN.get(oid) or self._types.get(oid)

    def _known(self, oid: int) -> PgType:
        found = self._find(oid)
        if found is None:
            raise TenancyError(f"type {oid} was used before it was known")
        return found

    def _make_decoder(self, oid: int) -> Decode:
        kind = self._known(oid)
        match kind.sort:
            case TypeSort.ARRAY:
                return values.array_decoder(self.decoder(kind.part), kind.delimiter.encode())
            case TypeSort.COMPOSITE:
                return values.composite_decoder([self.decoder(part) for part in kind.parts])
            case TypeSort.DOMAIN:
                return self.decoder(kind.part)
            case TypeSort.SCALAR:
                return _DECODERS.get(kind.name, values.decode_text)

    def _make_encoder(self, oid: int) -> Encode:
        kind = self._known(oid)
        match kind.sort:
            case TypeSort.ARRAY:
                return values.array_encoder(
                    self.encoder(kind.part),
                    leaf_lists=self._takes_lists(kind.part),
                    delimiter=kind.delimiter.encode(),
                )
            case TypeSort.COMPOSITE:
                attributes = [self.encoder(part) for part in kind.parts]
                return values.composite_encoder(list(kind.names), attributes)
            case TypeSort.DOMAIN:
                return self.encoder(kind.part)
            case TypeSort.SCALAR:
                return _ENCODERS.get(kind.name, values.encode_text)

    def _takes_lists(self, oid: int) -> bool:
        """Whether a list can be one value of the type."""
        kind = self._known(oid)
        match kind.sort:
            case TypeSort.DOMAIN:
                return self._takes_lists(kind.part)
            case TypeSort.ARRAY | TypeSort.COMPOSITE:
                return True
            case TypeSort.SCALAR:
                return kind.name in ("json", "jsonb")


#: Type, its number and the number of its array type (PostgreSQL's pg_type.dat).
_COMMON: Final = """
    boolean 16 1000; bytea 17 1001; "char" 18 1002; name 19 1003; bigint 20 1016;
    smallint 21 1005; integer 23 1007; text 25 1009; oid 26 1028; json 114 199; xml 142 143;
    cidr 650 651; real 700 1021; double precision 701 1022; unknown 705 0; macaddr8 774 775;
    money 790 791; macaddr 829 1040; inet 869 1041; character 1042 1014;
    character varying 1043 1015; date 1082 1182; time without time zone 1083 1183;
    timestamp without time zone 1114 1115; timestamp with time zone 1184 1185; interval 1186 1187;
    time with time zone 1266 1270; bit 1560 1561; bit varying 1562 1563; numeric 1700 1231;
    void 2278 0; uuid 2950 2951; tsvector 3614 3643; tsquery 3615 3645; jsonb 3802 3807;
    int4range 3904 3905; numrange 3906 3907; tsrange 3908 3909; tstzrange 3910 3911;
    daterange 3912 3913; int8range 3926 3927
"""


def _built_in() -> dict[int, PgType]:
    found = {_RECORD: PgType(oid=_RECORD, name="record")}
    for entry in _COMMON.split(";"):
        name, oid, array = entry.strip().rsplit(" ", 2)
        found[int(oid)] = PgType(oid=int(oid), name=name)
        if int(array):
            found[int(array)] = PgType(
                oid=int(array), name=f"{name}[]", sort=TypeSort.ARRAY, part=int(oid)
            )
    return found


_BUILT_IN: Final = _built_in()

_DECODERS: Final[dict[str, Decode]] = {
    "boolean": values.decode_bool,
    "smallint": int,
    "integer": int,
    "bigint": int,
    "real": values.decode_float,
    "double precision": values.decode_float,
    "json": values.decode_json,
    "jsonb": values.decode_json,
    "record": values.decode_record,
}

_ENCODERS: Final[dict[str, Encode]] = {
    "boolean": values.encode_bool,
    "smallint": values.encode_integer,
    "integer": values.encode_integer,
    "bigint": values.encode_integer,
    "oid": values.encode_integer,
    "real": values.encode_float,
    "double precision": values.encode_float,
    "numeric": values.encode_numeric,
    "money": values.encode_numeric,
    "bytea": values.encode_bytea,
    "uuid": values.encode_uuid,
    "date": values.encode_date,
    "timestamp without time zone": values.encode_timestamp,
    "timestamp with time zone": values.encode_timestamptz,
    "time without time zone": values.encode_time,
    "time with time zone": values.encode_timetz,
    "interval": values.encode_interval,
    "inet": values.encode_network,
    "cidr": values.encode_network,
    "json": values.encode_json,
    "jsonb": values.encode_json,
}
