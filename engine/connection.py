"""One session on PostgreSQL that works for tenants, one after the other.

The driver opens it (addresses, TLS, SCRAM); `wire.py` speaks on it from then on.

Rules this module keeps:

* A session knows for whom it is bound, and forgets that whenever it cannot be sure: after an error,
  since the setting is undone with the transaction, and after DISCARD ALL.
* It is used by one task at a time. Whoever stops in the middle closes it; it is never handed on
  with an answer outstanding.
* What the server would otherwise take from its own configuration and what decides how values are
  written is pinned when the session starts, so that DISCARD ALL comes back to it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tenancy.data_isolation.core.errors import ServerUnavailableError, TenancyError
from tenancy.data_isolation.core.identifiers import Epoch, TenantNo
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import Column
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.driver_errors import ServerReport, statement_error
from tenancy.data_isolation.engine.driver_session import DriverSession
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.type_map import PgType, TypeMap, TypeSort
from tenancy.data_isolation.engine.values import Decode, Encode, array_decoder
from tenancy.data_isolation.engine.wire import Exchange, Section, Step, Wire

_SQL = SqlFile("types.sql")
#: Signed bindings that a session keeps; signing one costs some microseconds.
_SIGNED_MAX: Final = 1_024
_BINDER: Final = b"tenancy_binder"
#: For whom the session works, and what memory one of its sorts may take.
_BIND_TEXT: Final = (
    "select pg_catalog.set_config('tenancy.binding', $1, false), "
    "pg_catalog.set_config('work_mem', $2, false)"
)

#: Set when a session starts; DISCARD ALL comes back to it (manual, 19.1.3).
_PINNED: Final = {
    "application_name": "tenancy",
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "60s",
    # So that defaults that a login has given itself (ALTER ROLE) cannot end others' statements.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    # The statement of a client that was killed ends, instead of running on for nobody.
    "client_connection_check_interval": "1s",
    # Compiling takes longer than the short statements of tenants run.
    "jit": "off",
    # One statement takes one processor and, for each sort or hash, no more than work_mem.
    "max_parallel_workers_per_gather": "0",
    "hash_mem_multiplier": "1",
}


class Binding(NamedTuple):
    """For whom a session works: tenant, epoch of its placement, number of the signing key.

    `memory_kb` is the tenant's work_mem, which changes hands with the session.
    """

    tenant_no: TenantNo
    epoch: Epoch
    key_id: int
    memory_kb: int


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """What a statement takes and gives in one schema. `columns` is None when it gives no rows."""

    parameter_names: tuple[str, ...]
    encoders: tuple[Encode, ...]
    columns: tuple[Column, ...] | None
    decoders: tuple[Decode, ...]
    raw_parameters: bytes
    raw_columns: bytes | None


class Connection:
    """A session. Belongs to one event loop and to one task at a time."""

    def __init__(
        self, key: SessionKey, driver: DriverSession, types: TypeMap, settings: Settings
    ) -> None:
        self.key = key
        #: The server process, which a binding is signed for.
        self.backend_pid: int = driver.backend_pid
        #: For whom the session is bound; None = for nobody, or not known.
        self.bound: Binding | None = None
        #: Whether something ran that may have left a trace in the session.
        self.dirty = False
        #: Whose statements ran here since the session was last emptied; None = nobody's.
        self._served: TenantNo | None = None
        self._served_several = False
        #: When the session was last used (event loop's time).
        self.used_at = 0.0
        self._driver = driver
        self._types = types
        self._settings = settings
        self._statements: OrderedDict[str, bytes] = OrderedDict()
        self._to_close: list[bytes] = []
        self._statement_count = 0
        self._binder_ready = False
        self._signed: dict[Binding, bytes] = {}
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._cancelling: asyncio.Task[None] | None = None
        self._wire = Wire(driver.transport, self._lost)
        driver.transport.set_protocol(self._wire)

    @classmethod
    async def open(
        cls,
        key: SessionKey,
        *,
        server: ServerConfig,
        password: str,
        types: TypeMap,
        settings: Settings,
        mark: str | None = None,
    ) -> Connection:
        """A new session. Raises `ServerUnavailableError` or `PlacementChangedError`.

        `mark` is the name by which the watchdog knows a session of the runtime's own.
        """
        pinned = _PINNED | {"search_path": key.search_path}
        if mark is not None:
            pinned["application_name"] = mark
        driver = await DriverSession.open(
            key, server=server, password=password, parameters=pinned, settings=settings
        )
        return cls(key, driver, types, settings)

    @property
    def bound_tenant(self) -> TenantNo | None:
        """The tenant that the session is bound to, if that is known."""
        return self.bound.tenant_no if self.bound is not None else None

    def serve(self, tenant_no: TenantNo) -> None:
        """Statements of the tenant are about to run."""
        if self._served != tenant_no:
            self._served_several = self._served is not None or self._served_several
            self._served = tenant_no

    def has_served_others(self, tenant_no: TenantNo) -> bool:
        """Whether there may be traces of another tenant: a binding, numbers of sequences."""
        return self._served_several or self._served not in (None, tenant_no)

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._wire.closed

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the server has let go of the session, so that its slot is free."""
        return self._ended

    # Work

    async def perform(self, sections: list[Section]) -> Exchange:
        """Send the sections and wait until they are answered."""
        exchange = self.start(sections)
        await self.finish(exchange)
        return exchange

    def start(
        self,
        sections: list[Section],
        *,
        bytes_max: int | None = None,
        cancel_excess: bool = True,
    ) -> Exchange:
        """Send the sections. `finish` waits for the answers.

        Rows beyond `bytes_max` in all (else `Settings.result_bytes_max`) are dropped. With
        `cancel_excess` the statement that gives them is cancelled too, or in bad luck the one
        after it.
        """
        exchange = Exchange(sections, bytes_max or self._settings.result_bytes_max)
        self._wire.send(exchange, self.cancel if cancel_excess else _let_it_run)
        return exchange

    async def finish(self, exchange: Exchange) -> None:
        """Wait until the sections are answered, and a cancellation under way as well."""
        await exchange.finished
        if self._cancelling is not None:
            # Only then can it not hit what comes next.
            await self._cancelling
            self._cancelling = None
        if exchange.lost or any(section.error is not None for section in exchange.sections):
            self.bound = None
            self._binder_ready = False

    def binding_messages(self, binding: Binding, keys: BindingKeys) -> list[bytes]:
        """Messages that bind the session; they are answered by one step. Then set `bound`."""
        messages: list[bytes] = []
        if not self._binder_ready:
            # It may be there: closing what is not there is no error.
            messages += (wire.close_statement(_BINDER), wire.parse(_BINDER, _BIND_TEXT))
            self._binder_ready = True
        signed = self._signed.get(binding)
        if signed is None:
            server, database = self.key.server, self.key.database
            text = keys.sign(server, database, binding.tenant_no, binding.epoch, self.backend_pid)
            memory = b"%dkB" % binding.memory_kb
            signed = wire.bind(_BINDER, [text.encode(), memory]) + wire.execute()
            if len(self._signed) >= _SIGNED_MAX:
                self._signed.clear()
            self._signed[binding] = signed
        messages.append(signed)
        return messages

    def prepared(self, text: str) -> bytes | None:
        """The name under which a text is prepared in this session."""
        name = self._statements.get(text)
        if name is not None:
            self._statements.move_to_end(text)
        return name

    def preparation(self, text: str) -> tuple[bytes, list[bytes]]:
        """A name for a text, and the messages that prepare it; the Describe is not among them."""
        self._statement_count += 1
        name = b"s%d" % self._statement_count
        messages = [wire.close_statement(old) for old in self._to_close]
        self._to_close.clear()
        self._statements[text] = name
        while len(self._statements) > self._settings.connection_statements_max:
            _, oldest = self._statements.popitem(last=False)
            self._to_close.append(oldest)
        messages.append(wire.parse(name, text))
        return name, messages

    def unprepare(self, text: str) -> None:
        """Forget a text whose preparation failed or is out of date."""
        name = self._statements.pop(text, None)
        if name is not None:
            self._to_close.append(name)

    async def describe(self, text: str) -> Description:
        """Prepare a text and learn what it takes and gives. Raises the statement's error."""
        name, messages = self.preparation(text)
        step = Step()
        section = Section([*messages, wire.describe(name)], [step])
        await self.perform([section])
        if section.error is not None or not section.ended:
            self.unprepare(text)
            raise self._error(section)
        return await self.describe_shape(step.parameters, step.row_shape)

    async def plan(self, text: str, parameters: int) -> None:
        """Have the server plan a prepared text, with nulls. Raises the statement's error."""
        name = self.prepared(text)
        if name is None:
            return
        # The Describe is there to be answered: a Bind alone has no step.
        section = Section([wire.bind(name, [None] * parameters), wire.describe(name)], [Step()])
        await self.perform([section])
        if section.error is not None or not section.ended:
            raise self._error(section)

    async def describe_shape(self, raw_parameters: bytes, raw_columns: bytes | None) -> Description:
        """A description from what the server said; asks for types that are not known yet."""
        parameters = wire.parameter_types(raw_parameters)
        shape = wire.columns(raw_columns) if raw_columns is not None else []
        await self._learn_types([*parameters, *(oid for _, oid, _ in shape)])
        await self._learn_names({(oid, modifier) for _, oid, modifier in shape})
        types = self._types
        return Description(
            parameter_names=tuple(types.name(oid) for oid in parameters),
            encoders=tuple(types.encoder(oid) for oid in parameters),
            columns=None
            if raw_columns is None
            else tuple(Column(name=name, type=types.name(oid, mod)) for name, oid, mod in shape),
            decoders=tuple(types.decoder(oid) for _, oid, _ in shape),
            raw_parameters=raw_parameters,
            raw_columns=raw_columns,
        )

    async def discard(self) -> None:
        """Take every trace out of the session (manual, DISCARD). Closes it when that fails."""
        section = Section(
            [wire.parse(b"", "discard all"), wire.bind(b"", ()), wire.execute()], [Step()]
        )
        await self.perform([section])
        self._statements.clear()
        self._to_close.clear()
        self._binder_ready = False
        self.bound = None
        self.dirty = False
        self._served, self._served_several = None, False
        if section.error is not None or not section.ended:
            self.abort()

    async def undo(self) -> None:
        """End a transaction that a section without `sync` left open, undoing it."""
        await self.perform([Section([wire.FAIL], [Step()])])

    def cancel(self) -> None:
        """Ask the server to cancel what runs now; closes the session if that takes too long."""
        if self._cancelling is not None and not self._cancelling.done():
            return
        exchange = self._wire.exchange
        if exchange is not None:
            grace_s = self._settings.cancel_timeout_ms / 1_000
            asked_at = self._loop.time()
            self._loop.call_later(grace_s, self._give_up, exchange, asked_at)
            self._cancelling = self._loop.create_task(self._cancel())

    def cancel_later(self, delay_s: float) -> asyncio.TimerHandle:
        """Cancel what runs then, unless the handle is cancelled before."""
        return self._loop.call_later(delay_s, self.cancel)

    def abort(self) -> None:
        """Drop the session at once."""
        if not self._wire.closed:
            self._driver.transport.abort()

    async def close(self) -> None:
        """Say goodbye, and wait until the server has let go."""
        if not self._wire.closed:
            self._wire.write(wire.TERMINATE)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await asyncio.shield(self._ended)
        except TimeoutError:
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise

    async def _cancel(self) -> None:
        try:
            async with asyncio.timeout(self._settings.cancel_timeout_ms / 1_000):
                await self._driver.cancel()
        except (OSError, TimeoutError):
            self.abort()

    def _give_up(self, exchange: Exchange, asked_at: float) -> None:
        """Nothing was heard of a statement since it was asked to stop."""
        if self._wire.exchange is exchange and exchange.moved_at <= asked_at:
            self.abort()

    def _lost(self, error: Exception | None) -> None:
        self.bound = None
        # The driver hears of it as well, and lets go of what it holds.
        self._driver.lost(error)
        if not self._ended.done():
            self._ended.set_result(None)

    async def _learn_types(self, oids: Sequence[int]) -> None:
        """Ask for types until all that is needed is known. Each round goes one level deeper."""
        while missing := self._types.missing(oids):
            wanted = "{" + ",".join(map(str, sorted(missing))) + "}"
            rows = await self._ask("types", [wanted.encode()], _TYPE_DECODERS)
            found = [
                PgType(
                    oid=oid,
                    name=name,
                    sort=TypeSort(sort),
                    part=part,
                    delimiter=delimiter,
                    names=tuple(names),
                    parts=tuple(parts),
                )
                for oid, name, sort, part, delimiter, names, parts in rows
            ]
            # One that is gone meanwhile is text, so that the loop ends.
            gone = missing - {item.oid for item in found}
            self._types.add([*found, *(PgType(oid=oid, name="???") for oid in gone)])

    async def _learn_names(self, columns: set[tuple[int, int]]) -> None:
        unnamed = sorted(self._types.unnamed(columns))
        if unnamed:
            arrays = [
                ("{" + ",".join(str(item[side]) for item in unnamed) + "}").encode()
                for side in (0, 1)
            ]
            rows = await self._ask("modified_types", arrays, (int, int, bytes.decode))
            self._types.add_names((oid, modifier, name) for oid, modifier, name in rows)

    async def _ask(
        self, statement: str, arguments: Sequence[bytes | None], decoders: Sequence[Decode]
    ) -> list[list[Any]]:
        """Run a statement of the runtime's own."""
        step = Step(decoders)
        messages = [
            wire.parse(b"", _SQL.statement(statement)),
            wire.bind(b"", arguments),
            wire.execute(),
        ]
        section = Section(messages, [step])
        await self.perform([section])
        if section.error is not None or not section.ended:
            raise self._error(section)
        return step.rows

    @staticmethod
    def _error(section: Section) -> TenancyError:
        if section.error is None:
            return ServerUnavailableError("the connection to the PostgreSQL server broke")
        return statement_error(ServerReport.of_fields(section.error))


def _let_it_run() -> None:
    """What follows in the same flight must not be hit by a cancellation."""


_TYPE_DECODERS: Final[tuple[Decode, ...]] = (
    int,
    bytes.decode,
    bytes.decode,
    int,
    bytes.decode,
    array_decoder(bytes.decode),
    array_decoder(int),
)
