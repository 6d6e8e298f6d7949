"""What an attack is, and what came of one.

The ids are those of a catalogue of attacks on multi-tenant PostgreSQL: C context forgery, I
injection, R row security, V definer rights and shadowing, X covert channels, P residue in pooled
sessions, S and B other schemas and databases, D denial of service, A above the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from attacks.scene import Scene


class Goal(StrEnum):
    """What the attacker wants; each is a question that `goals.reached` answers."""

    #: A row of the victim, in rows or in the text of an error.
    READ = "reads the victim's rows"
    #: Something about the victim: the number of its rows, its name.
    LEARN = "learns something about the victim"
    #: Another answer when the victim has a value than when it has not.
    TELL_APART = "tells whether the victim has a value"
    #: Rows of the victim, or what the victim sees, differ afterwards.
    CHANGE = "changes what the victim has or sees"
    #: The victim's own operations fail or are held up afterwards.
    HINDER = "hinders the victim"
    #: No step fails: a power that no tenant should have.
    RUN = "has a power that tenants must not have"


class WeakLogin(StrEnum):
    """As whom the attack is tried on the weak setup."""

    #: A login that all tenants share, member of their roles, with the tenant in a setting.
    SHARED = "shared"
    #: The owner of the tables, who is no superuser.
    OWNER = "owner"
    #: A superuser.
    BOSS = "boss"


class WeakPool(StrEnum):
    """What the weak setup does with a session that changes hands."""

    #: Nothing but to name the next tenant.
    PLAIN = "plain"
    #: It begins a transaction and names the next tenant in it.
    IN_TRANSACTION = "in transaction"
    #: It names the next tenant by SET LOCAL, without a transaction.
    LOCAL = "local"
    #: What asyncpg's pool does, then to name the next tenant.
    ASYNCPG = "asyncpg"


#: Answers whether the goal was reached. Everything it does to the database goes through the scene.
Play = Callable[[Scene], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """One attack.

    `steps` are statements with names in braces that each stage fills in (`Scene.names`), sent one
    after the other in one session; or `play` is the attack as a program. `before` is what the
    victim did in the same session earlier, where a session serves both. `after` is what the victim
    does next, and is where `Goal.CHANGE` and `Goal.HINDER` look.

    `weakness` are statements that take from the weak setup what it takes for the attack to work;
    `weak_as` is who tries it there. `setting_up` are statements of the administrator on the product
    that make the attack as easy as it could be, and `clearing_up` undo them.

    `accepted` names the channel (`channels.CHANNELS`) by which the attack succeeds in part of the
    places: a place is a level, or a level and a way, as in "row" or "row/direct".
    """

    id: str
    title: str
    goal: Goal
    steps: Sequence[str] = ()
    play: Play | None = None
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    weak_as: WeakLogin = WeakLogin.SHARED
    weak_pool: WeakPool = WeakPool.PLAIN
    weakness: Sequence[str] = ()
    setting_up: Sequence[str] = ()
    clearing_up: Sequence[str] = ()
    accepted: dict[str, str] = field(default_factory=dict)
    #: It brings its own connections, or is no SQL of a tenant's, whatever the way in.
    one_way: bool = False
    variant: str = ""

    @property
    def name(self) -> str:
        """The id, with the variant where there are several."""
        return f"{self.id}-{self.variant}" if self.variant else self.id
