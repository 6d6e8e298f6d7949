"""What changed in an installation since it was last looked at.

A fingerprint has a text for each object that counts for the boundary: roles, rights, policies,
functions, triggers, settings, access rules. It is kept in a file per server under
`TENANCY_HOME/doctor`, sealed with an HMAC under a key derived from the master key, so that who can
write there but does not hold that key cannot make a change look old. (Who puts an older sealed file
back makes changes look newer than they are, and who removes it makes the next look the first one.)

What the runtime itself does is no drift: tenants that came and went by the catalog, schemas that
moved to another version, and limits of logins that are now what the settings say. Everything else
stays a finding until it is accepted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tenancy.data_isolation.core.crypto import MasterKey, record_key
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.layout import HYBRID_ROLE, TRIAL_SCHEMA
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file

CHECK: Final = "drift"
_FORMAT: Final = 1
#: What of the server's own comes and goes with a tenant, and the tenant's name in it.
_OF_A_TENANT: Final = re.compile(
    rf"(?:role|database|membership|settings of) (?P<name>\S+)(?: in ({HYBRID_ROLE}|all databases))?"
)
#: What a move adds to tables, and the move in its name. It is looked at by itself (move_traces.py).
_OF_A_MOVE: Final = re.compile(
    r"[^:]+: trigger tenancy_(?P<move>m_[0-9a-f]{20})_(insert|update|delete) on .*", re.DOTALL
)
_MOVE: Final = re.compile("m_[0-9a-f]{20}")
#: Limits that the runtime gives a login, in the text of what belongs to it.
_LIMITS: Final = re.compile(r"connections -?\d+|temp_file_limit=\w+")
#: What is left over of a list when a part of it is taken out.
_PUNCTUATION: Final = re.compile(r"[{}\s,]+")
_SHOWN_CHARACTERS: Final = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Trait:
    """One object: where it is, and the text that changes with it."""

    value: str
    #: The database; empty for the server's own.
    database: str
    #: The schema it is in; empty when it is in none.
    space: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What a server looks like at one moment."""

    #: `kind name`, with the database in front, → what it is like.
    traits: Mapping[str, Trait]
    #: `database/schema` → the version of the users' schema there, or of the runtime's own.
    versions: Mapping[str, int]
    #: Names of the roles, schemas and databases of tenants that the catalog knows.
    tenants: frozenset[str]
    #: When it was taken (ISO 8601, UTC).
    taken_at: str
    #: Login → the limits that it has by the settings, as `_LIMITS` reads them. Not kept.
    limits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: Databases that let nobody in, so that nothing is known of what is in them. Not kept.
    unseen: frozenset[str] = frozenset()
    #: Roles, schemas and databases of moves that are under way, which come and go. Not kept.
    moving: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is kept of a server: how it was when it was accepted, and since when it is not so."""

    accepted: Fingerprint
    #: When somebody last looked.
    looked_at: str
    #: Objects that are not as they were accepted → when they were last seen so.
    last_seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One object that is not as it was accepted."""

    key: str
    before: str | None
    now: str | None
    last_seen: str

    @property
    def problem(self) -> str:
        """What happened to it, and since when."""
        if self.before is None:
            return f"was added since {self.last_seen}: {_shown(self.now)}"
        if self.now is None:
            return f"was removed since {self.last_seen}: it was {_shown(self.before)}"
        before, now = _apart(self.before, self.now)
        return f"was changed since {self.last_seen}: it was {before}, and is {now}"


def compared(record: Record, now: Fingerprint) -> tuple[Record, list[Change]]:
    """What changed, and the record to keep: what the runtime did by itself is accepted in it."""
    old = record.accepted
    accepted = dict(old.traits)
    changes = []
    for key in sorted(old.traits.keys() | now.traits.keys()):
        before, after = old.traits.get(key), now.traits.get(key)
        if before is not None and after is not None and before.value == after.value:
            continue
        if after is None and before is not None and before.database in now.unseen:
            continue
        if _is_own_doing(key, before, after, old, now):
            if after is None:
                del accepted[key]
            else:
                accepted[key] = after
            continue
        changes.append(
            Change(
                key=key,
                before=None if before is None else before.value,
                now=None if after is None else after.value,
                last_seen=record.last_seen.get(key, record.looked_at),
            )
        )
    kept = replace(completed(now, old), traits=accepted, taken_at=old.taken_at)
    seen = {change.key: change.last_seen for change in changes}
    return Record(accepted=kept, looked_at=now.taken_at, last_seen=seen), changes


def completed(now: Fingerprint, old: Fingerprint) -> Fingerprint:
    """`now`, with what `old` says of the databases that nobody has seen since."""
    traits = {key: trait for key, trait in old.traits.items() if trait.database in now.unseen}
    versions = {
        place: version
        for place, version in old.versions.items()
        if place.partition("/")[0] in now.unseen
    }
    return replace(now, traits=traits | dict(now.traits), versions=versions | dict(now.versions))


def drift_findings(server: str, changes: list[Change]) -> Iterator[Finding]:
    """The changes as findings."""
    for change in changes:
        yield Finding(
            check=CHECK,
            severity=Severity.WARNING,
            server=server,
            database="",
            subject=change.key,
            problem=change.problem,
            advice="if that was meant: tenancy doctor --accept; else put it back",
            by_hand=True,
        )


class DriftFile:
    """The record of one server in its file. Blocks for as long as some megabytes take."""

    def __init__(self, home: Path, server: ServerName, key: MasterKey) -> None:
        name = re.sub("[^a-z0-9_-]", "_", server)
        if name != server:
            # Two names may differ in just what a file's name cannot have.
            name = f"{name}-{hashlib.sha256(server.encode()).hexdigest()[:16]}"
        self.path = home / "doctor" / f"{name}.json"
        self._key = record_key(key, f"drift/{server}")

    def read(self) -> Record | None:
        """The record; None when there is none yet. `SetupError` when it is not one of ours."""
        with file_errors(self.path):
            content = self.path.read_bytes() if self.path.exists() else None
        if content is None:
            return None
        try:
            envelope = json.loads(content)
            body = base64.b64decode(envelope["body"], validate=True)
            sealed = hmac.compare_digest(str(envelope["seal"]), self._seal(body))
            if not sealed or envelope["format"] != _FORMAT:
                raise ValueError
            return _record(json.loads(zlib.decompress(body)))
        except (ValueError, KeyError, TypeError, zlib.error):
            raise SetupError(
                f"{self.path} was not written by this installation: somebody changed it, or the "
                "master key is another one"
            ) from None

    def write(self, record: Record) -> None:
        """Replace the record."""
        body = zlib.compress(json.dumps(_document(record)).encode(), 6)
        envelope = {
            "format": _FORMAT,
            "seal": self._seal(body),
            "body": base64.b64encode(body).decode(),
        }
        with file_errors(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(envelope).encode() + b"\n")

    def _seal(self, body: bytes) -> str:
        return hmac.digest(self._key, body, "sha256").hex()


def _is_own_doing(
    key: str, before: Trait | None, after: Trait | None, old: Fingerprint, now: Fingerprint
) -> bool:
    """Whether the runtime itself made the change: a tenant came or went, or a schema moved on."""
    some = after or before
    assert some is not None  # noqa: S101 - one of the two is there.
    tenants = {some.database, some.space}
    of_server = None if some.database else _OF_A_TENANT.fullmatch(key)
    if of_server is not None:
        tenants.add(of_server["name"])
        if after is not None and _is_limited(before, after, now.limits.get(of_server["name"])):
            return True
    of_move = _OF_A_MOVE.fullmatch(key)
    if of_move is not None:
        tenants.add(of_move["move"])
    if (before is None or after is None) and tenants & now.moving:
        return True
    if after is None and any(map(_MOVE.fullmatch, tenants)):
        return True
    if before is None and tenants & (now.tenants - old.tenants):
        return True
    if after is None and tenants & (old.tenants - now.tenants):
        return True
    if TRIAL_SCHEMA in tenants:
        # It has no version of its own: what is migrated in this database is tried there.
        places = [key for key in now.versions if key.startswith(f"{some.database}/")]
    else:
        places = [f"{some.database}/{some.space}"]
    return any(
        place in now.versions and now.versions[place] != old.versions.get(place) for place in places
    )


def _is_limited(before: Trait | None, after: Trait, due: frozenset[str] | None) -> bool:
    """Whether nothing but limits changed, and those are now as the settings have them.

    A limit that is gone is a change like any other.
    """
    had = before.value if before is not None else ""
    limits, had_limits = _LIMITS.findall(after.value), _LIMITS.findall(had)
    return (
        due is not None
        and due.issuperset(limits)
        and len(limits) >= max(len(had_limits), 1)
        and _without_limits(had) == _without_limits(after.value)
    )


def _without_limits(text: str) -> str:
    return _PUNCTUATION.sub(" ", _LIMITS.sub(" ", text)).strip()


def _document(record: Record) -> dict[str, Any]:
    accepted = record.accepted
    return {
        "looked_at": record.looked_at,
        "last_seen": dict(record.last_seen),
        "taken_at": accepted.taken_at,
        "versions": dict(accepted.versions),
        "tenants": sorted(accepted.tenants),
        "traits": [
            [key, trait.value, trait.database, trait.space]
            for key, trait in accepted.traits.items()
        ],
    }


def _record(document: Mapping[str, Any]) -> Record:
    return Record(
        accepted=Fingerprint(
            traits={
                key: Trait(value=value, database=database, space=space)
                for key, value, database, space in document["traits"]
            },
            versions=document["versions"],
            tenants=frozenset(document["tenants"]),
            taken_at=document["taken_at"],
        ),
        looked_at=document["looked_at"],
        last_seen=document["last_seen"],
    )


def _shown(text: str | None) -> str:
    text = " ".join((text or "").split())
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def _apart(before: str, now: str) -> tuple[str, str]:
    """Both texts from a little before the first place where they differ."""
    same = next(
        (place for place, (a, b) in enumerate(zip(before, now, strict=False)) if a != b),
        min(len(before), len(now)),
    )
    begin = max(same - 30, 0)
    return _shown(before[begin:]), _shown(now[begin:])
