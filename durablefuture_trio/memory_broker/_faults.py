"""What goes wrong: probabilities for simulations, scripted single faults for tests.

The default plan is a healthy server and a healthy link. One plan may serve the whole server, or each link its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeAlias, TypeVar

from durablefuture_trio.memory_broker._subjects import matcher
from durablefuture_trio.ports.broker import Append

Span: TypeAlias = tuple[float, float]
"""A uniformly distributed number of seconds, from and to."""

INJECTED_KINDS = frozenset(
    {
        "delayed_answer",
        "delivered_into_dead_link",
        "double_fire",
        "dropped_append",
        "forgotten_ack",
        "forgotten_below_floor",
        "forgotten_delivery",
        "full",
        "full_fire",
        "incomplete_read",
        "lands_after_link_loss",
        "late_ack",
        "late_append",
        "late_fire",
        "link_drop",
        "lost_ack",
        "lost_delivery",
        "lost_puback",
        "lost_tell",
        "purged_replacement",
        "racing_fire",
        "server_kill",
        "server_pause",
        "server_stop",
        "stale_read",
        "unanswered_read",
    }
)
"""What `MemoryServer.injected` counts. ``full`` is a publish refused, ``full_fire`` a fire; ``purged_replacement`` a
fire that deleted an acknowledged replacement; a ``stale_read`` one whose answer was another than the present one."""

F = TypeVar("F")


@dataclass(frozen=True)
class AppendFate:
    """What becomes of one publish.

    Attributes:
        lands_after: seconds until it is stored; None: never. Past the answer timeout the sender has given up by then.
        answered: False: the PubAck is lost.
        answer_after: seconds the PubAck takes once the message is stored.
    """

    lands_after: float | None = 0.0
    answered: bool = True
    answer_after: float = 0.0


@dataclass(frozen=True)
class ReadFate:
    """What becomes of one read.

    Attributes:
        stale_by: an unconfirmed read shows the stream as it was this many changes ago.
        incomplete: a batched read breaks off.
        answered: False: no answer comes.
        answer_after: seconds the answer takes.
    """

    stale_by: int = 0
    incomplete: bool = False
    answered: bool = True
    answer_after: float = 0.0


@dataclass(frozen=True)
class AckFate:
    """What becomes of one acknowledgement: it reaches the server after so many seconds; None: never."""

    lands_after: float | None = 0.0


@dataclass(frozen=True)
class DeliveryFate:
    """What becomes of one delivery: it reaches the reader after so many seconds; None: never."""

    arrives_after: float | None = 0.0


@dataclass(frozen=True)
class FireFate:
    """What becomes of one schedule that is due.

    Attributes:
        late_by: seconds until the server collects it.
        stored_after: seconds from collecting it until the fired message is stored and the schedule's subject purged,
            whatever that subject then holds.
        times: how often it fires.
    """

    late_by: float = 0.0
    stored_after: float = 0.0
    times: int = 1


class _Script(Generic[F]):
    """Single faults that wait for the next operation on a subject they fit."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[str], bool], F]] = []

    def add(self, subject: str, fate: F, count: int) -> None:
        self._waiting.extend([(matcher(subject), fate)] * count)

    def take(self, subject: str) -> F | None:
        for place, (fits, fate) in enumerate(self._waiting):
            if fits(subject):
                del self._waiting[place]
                return fate
        return None

    def __bool__(self) -> bool:
        return bool(self._waiting)


@dataclass
class FaultPlan:
    """Probabilities (0 to 1), durations, and scripted faults. May be changed at any time.

    Attributes:
        latency: each way, for everything on the link. What is sent earlier arrives earlier, late landings excepted.
        store_delay: how long the server takes to store a publish; reads on the same link may overtake it meanwhile.
        late_append, late_append_by: a publish is stored this long after its sender has given up waiting.
        dropped_append: a publish is never stored and never answered.
        lost_puback: a publish is stored and never answered.
        delayed_answer, delayed_answer_by: an answer of any kind takes longer.
        unanswered_read: no answer comes.
        stale_read, stale_read_by: an unconfirmed read shows up to so many changes ago.
        incomplete_read: a batched read breaks off.
        lost_ack, late_ack, late_ack_by: an acknowledgement never arrives, or late.
        lost_delivery: a delivery is counted as delivered and never reaches its reader, although the link holds.
        lost_tell: a core message is lost.
        late_fire, late_fire_by: a schedule fires late.
        racing_fire, racing_fire_by: a schedule's message is stored, and its subject purged, this long after the server
            collected it: a replacement acknowledged in between is deleted.
        double_fire: a schedule fires twice.
        lands_after_link_loss, lands_after_link_loss_by: what was on its way (or is sent) when the link is down is
            performed by the server nevertheless, so much later.
        dead_link_for: how long after the loss of a link the server goes on delivering into it.
        forgotten_ack: the share of recent acknowledgements a killed server has forgotten when it comes back.
        forgotten_delivery: the share of unacknowledged deliveries a killed server has forgotten: they come again
            with count 1, also where the acknowledgement wait is endless (m).
        append_hook: asked before every publish with the link's name; a fate, or None for the dice.
    """

    latency: Span = (0.0, 0.0)
    store_delay: Span = (0.0, 0.0)
    late_append: float = 0.0
    late_append_by: Span = (0.001, 10.0)
    dropped_append: float = 0.0
    lost_puback: float = 0.0
    delayed_answer: float = 0.0
    delayed_answer_by: Span = (0.0, 1.0)
    unanswered_read: float = 0.0
    stale_read: float = 0.0
    stale_read_by: int = 20
    incomplete_read: float = 0.0
    lost_ack: float = 0.0
    late_ack: float = 0.0
    late_ack_by: Span = (0.0, 10.0)
    lost_delivery: float = 0.0
    lost_tell: float = 0.0
    late_fire: float = 0.0
    late_fire_by: Span = (0.0, 0.25)
    racing_fire: float = 0.0
    racing_fire_by: Span = (0.0, 0.1)
    double_fire: float = 0.0
    lands_after_link_loss: float = 0.0
    lands_after_link_loss_by: Span = (0.0, 10.0)
    dead_link_for: Span = (0.0, 0.0)
    forgotten_ack: float = 0.0
    forgotten_delivery: float = 0.0
    append_hook: Callable[[str, Append], AppendFate | None] | None = None
    _appends: _Script[AppendFate] = field(default_factory=_Script, repr=False)
    _reads: _Script[ReadFate] = field(default_factory=_Script, repr=False)
    _acks: _Script[AckFate] = field(default_factory=_Script, repr=False)
    _deliveries: _Script[DeliveryFate] = field(default_factory=_Script, repr=False)
    _fires: _Script[FireFate] = field(default_factory=_Script, repr=False)

    # --- scripting ----------------------------------------------------------------------------------------------------

    def next_append(self, fate: AppendFate, subject: str = ">", count: int = 1) -> None:
        """Give the next `count` publishes on `subject` (a pattern) this fate."""
        self._appends.add(subject, fate, count)

    def next_read(self, fate: ReadFate, subject: str = ">", count: int = 1) -> None:
        """Give the next `last`, `many` or page of a `scan` that asks for a subject within `subject` this fate."""
        self._reads.add(subject, fate, count)

    def next_ack(self, fate: AckFate, subject: str = ">", count: int = 1) -> None:
        """Give the next acknowledgement (or in-progress) of a message on `subject` this fate."""
        self._acks.add(subject, fate, count)

    def next_delivery(self, fate: DeliveryFate, subject: str = ">", count: int = 1) -> None:
        """Give the next delivery of a message on `subject` this fate."""
        self._deliveries.add(subject, fate, count)

    def next_fire(self, fate: FireFate, subject: str = ">", count: int = 1) -> None:
        """Give the next schedule on `subject` that is stored from now on this fate when it is due."""
        self._fires.add(subject, fate, count)

    # --- the dice -----------------------------------------------------------------------------------------------------

    def hop(self, rng: Random) -> float:
        """Seconds one way."""
        return _draw(rng, self.latency)

    def append_fate(self, rng: Random, link: str, append: Append, answer_timeout: float) -> AppendFate | None:
        """None: nothing out of the ordinary."""
        if self.append_hook is not None and (hooked := self.append_hook(link, append)) is not None:
            return hooked
        if self._appends and (scripted := self._appends.take(append.subject)) is not None:
            return scripted
        if _hits(rng, self.dropped_append):
            return AppendFate(lands_after=None, answered=False)
        if _hits(rng, self.late_append):
            return AppendFate(lands_after=answer_timeout + _draw(rng, self.late_append_by))
        answered = not _hits(rng, self.lost_puback)
        answer_after = self._answer_delay(rng)
        lands_after = _draw(rng, self.store_delay)
        if answered and not answer_after and not lands_after:
            return None
        return AppendFate(lands_after=lands_after, answered=answered, answer_after=answer_after)

    def read_fate(self, rng: Random, subject: str) -> ReadFate | None:
        """None: nothing out of the ordinary."""
        if self._reads and (scripted := self._reads.take(subject)) is not None:
            return scripted
        fate = ReadFate(
            stale_by=rng.randint(1, self.stale_read_by) if _hits(rng, self.stale_read) else 0,
            incomplete=_hits(rng, self.incomplete_read),
            answered=not _hits(rng, self.unanswered_read),
            answer_after=self._answer_delay(rng),
        )
        return None if fate == _GOOD_READ else fate

    def ack_fate(self, rng: Random, subject: str) -> AckFate | None:
        """None: nothing out of the ordinary."""
        if self._acks and (scripted := self._acks.take(subject)) is not None:
            return scripted
        if _hits(rng, self.lost_ack):
            return AckFate(lands_after=None)
        return AckFate(lands_after=_draw(rng, self.late_ack_by)) if _hits(rng, self.late_ack) else None

    def delivery_fate(self, rng: Random, subject: str) -> DeliveryFate | None:
        """None: nothing out of the ordinary."""
        if self._deliveries and (scripted := self._deliveries.take(subject)) is not None:
            return scripted
        return DeliveryFate(arrives_after=None) if _hits(rng, self.lost_delivery) else None

    def fire_fate(self, rng: Random, subject: str) -> FireFate:
        """How a schedule will fire."""
        if self._fires and (scripted := self._fires.take(subject)) is not None:
            return scripted
        late = _draw(rng, self.late_fire_by) if _hits(rng, self.late_fire) else 0.0
        racing = _draw(rng, self.racing_fire_by) if _hits(rng, self.racing_fire) else 0.0
        return FireFate(late_by=late, stored_after=racing, times=2 if _hits(rng, self.double_fire) else 1)

    def tell_is_lost(self, rng: Random) -> bool:
        """Whether a core message goes nowhere."""
        return _hits(rng, self.lost_tell)

    def lands_after_loss(self, rng: Random) -> float | None:
        """Seconds until something sent into a lost link is performed; None: never."""
        return _draw(rng, self.lands_after_link_loss_by) if _hits(rng, self.lands_after_link_loss) else None

    def _answer_delay(self, rng: Random) -> float:
        return _draw(rng, self.delayed_answer_by) if _hits(rng, self.delayed_answer) else 0.0


_GOOD_READ = ReadFate()


def _hits(rng: Random, probability: float) -> bool:
    # No draw for what cannot happen: switching one fault on must not shift the dice of the others.
    return probability > 0.0 and rng.random() < probability


def _draw(rng: Random, span: Span) -> float:
    low, high = span
    return rng.uniform(low, high) if high > low else low
