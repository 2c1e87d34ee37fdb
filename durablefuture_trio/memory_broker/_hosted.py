"""A stream with what hangs on it: its consumers, and the schedules it will fire."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

from durablefuture_trio.memory_broker._consumer import Consumer
from durablefuture_trio.memory_broker._faults import FaultPlan, FireFate
from durablefuture_trio.memory_broker._schedulers import Callback, Scheduler
from durablefuture_trio.memory_broker._stream import REMEMBERED_REMOVALS, Stream
from durablefuture_trio.memory_broker._subjects import is_literal, matcher, overlap
from durablefuture_trio.ports.broker import (
    Append,
    ConsumerConflict,
    Headers,
    Rejected,
    Schedule,
    Stored,
    StoreFull,
)

NEUTRALISED_FOR_S = 1.0
"""Nats-TTL of a neutralised subject."""

CONSUMER_EXISTS = 10148
TTL_DISABLED = 10166
SCHEDULES_DISABLED = 10188
SCHEDULE_TARGET_INVALID = 10190


class Host(Protocol):
    """What a stream needs of its server."""

    scheduler: Scheduler
    rng: Random
    faults: FaultPlan
    full: bool

    def later(self, when: float, call: Callback) -> None:
        """Have the server do something later, if it still lives then."""
        ...

    def trace(self, who: str, what: str, subject: str = "") -> None:
        """Report."""
        ...

    def count(self, kind: str, times: int = 1) -> None:
        """A fault has happened so often."""
        ...


class _Armed:
    """A stored schedule that has not fired.

    Attributes:
        collected: the server is about to fire it.
        covered: an ordinary message came to its subject: it does not fire (m).
        stays_covered: the server has stopped in good order since, and written that down: a kill alone makes the next
            start read the schedule in again, and fire it (m).
    """

    __slots__ = ("collected", "covered", "fate", "schedule", "stays_covered", "stored")

    def __init__(self, stored: Stored, schedule: Schedule, fate: FireFate) -> None:
        self.stored = stored
        self.schedule = schedule
        self.fate = fate
        self.collected = False
        self.covered = False
        self.stays_covered = False


class HostedStream:
    """One stream of a server."""

    def __init__(self, host: Host, stream: Stream) -> None:
        self.stream = stream
        self.consumers: dict[str, Consumer] = {}
        self._host = host
        self._owns: list[Callable[[str], bool]] = [matcher(subject) for subject in stream.spec.subjects]
        self._armed: dict[int, _Armed] = {}
        self._expiring: dict[int, float] = {}
        self._acked: deque[Stored] = deque(maxlen=REMEMBERED_REMOVALS)

    def takes(self, subject: str) -> bool:
        """Whether this stream stores the subject."""
        return any(owns(subject) for owns in self._owns)

    # --- messages -----------------------------------------------------------------------------------------------------

    def append(self, append: Append, who: str) -> int:
        """Store a publish, or say why not."""
        host, spec = self._host, self.stream.spec
        if append.neutralise and not spec.schedules:
            raise Rejected("per-message TTL is disabled", TTL_DISABLED)
        self.stream.check_expectation(append)
        if append.schedule is not None:
            self._check_schedule(append.subject, append.schedule)
        now = host.scheduler.now()
        duplicate = self.stream.duplicate_of(append, now)
        if duplicate is not None:
            host.trace(who, "duplicate", append.subject)
            return duplicate
        if host.full:
            host.count("full")
            raise StoreFull("insufficient resources")
        stored = self._store(append)
        host.trace(who, "stored", append.subject)
        if append.neutralise:
            self._expiring[stored.seq] = now + NEUTRALISED_FOR_S
            host.later(now + NEUTRALISED_FOR_S, partial(self._expire, stored.seq))
        elif append.schedule is not None:
            armed = _Armed(stored, append.schedule, host.faults.fire_fate(host.rng, append.subject))
            self._armed[stored.seq] = armed
            self._arm(stored.seq, armed)
        return stored.seq

    def store(self, subject: str, body: bytes, headers: Headers) -> Stored:
        """Store a plain message, and deliver it."""
        return self._store(Append(subject=subject, body=body, headers=headers))

    def _store(self, append: Append) -> Stored:
        subject = append.subject
        if append.schedule is None:
            self._cover(subject)
        stored = self.stream.add(subject, append.body, append.headers, self._host.scheduler.now(), append.message_id)
        wanted = [consumer for consumer in self.consumers.values() if consumer.wants(subject)]
        for consumer in wanted:
            consumer.added(stored.seq)
        if append.neutralise or append.schedule is not None:
            self.purge(subject, keep=1)
        for consumer in wanted:
            self.deliver(consumer)
        return stored

    def remove(self, seq: int) -> Stored | None:
        """Remove a message, which may make room for the next delivery; None if it is not there."""
        stored = self._take_out(seq)
        if stored is not None:
            for consumer in self.consumers.values():
                self.deliver(consumer)
        return stored

    def _take_out(self, seq: int) -> Stored | None:
        stored = self.stream.remove(seq)
        if stored is not None:
            self._armed.pop(seq, None)
            self._expiring.pop(seq, None)
            for consumer in self.consumers.values():
                consumer.removed(seq)
        return stored

    def purge(self, subject: str, keep: int) -> int:
        """Remove all but the last `keep` on a pattern; how many."""
        found = [stored.seq for stored in self.stream.matching(subject)]
        doomed = found[: len(found) - keep] if keep else found
        for consumer in self.consumers.values():
            consumer.purged(doomed)
        for seq in doomed:
            self._take_out(seq)
        for consumer in self.consumers.values():
            self.deliver(consumer)
        self.stream.purged_whole |= subject == ">" and not keep
        return len(doomed)

    def _expire(self, seq: int) -> None:
        self.remove(seq)

    # --- schedules ----------------------------------------------------------------------------------------------------

    def _check_schedule(self, subject: str, schedule: Schedule) -> None:
        target = schedule.target
        if not self.stream.spec.schedules:
            raise Rejected("message schedules is disabled", SCHEDULES_DISABLED)
        if not is_literal(target) or target == subject or not self.takes(target):
            raise Rejected("message schedules target is invalid", SCHEDULE_TARGET_INVALID)

    def _cover(self, subject: str) -> None:
        if not self._armed:
            return
        armed = self._armed.get(self.stream.last_seq_of(subject))
        if armed is not None:
            armed.covered = True

    def _arm(self, seq: int, armed: _Armed) -> None:
        due = max(armed.schedule.due, self._host.scheduler.now()) + armed.fate.late_by
        self._host.later(due, partial(self._collect, seq))

    def _collect(self, seq: int) -> None:
        armed = self._armed.get(seq)
        if armed is None or armed.collected or armed.covered:
            return
        armed.collected = True
        if armed.fate.stored_after:
            self._host.later(self._host.scheduler.now() + armed.fate.stored_after, partial(self._fire, armed))
        else:
            self._fire(armed)

    def _fire(self, armed: _Armed) -> None:
        stored = armed.stored
        host, fate = self._host, armed.fate
        if host.full:
            host.count("full_fire")
            host.trace("server", "fire refused: full", stored.subject)
            return  # and `collected` stays set: the server tries again only after a restart
        host.count("late_fire", fate.late_by > 0)
        host.count("racing_fire", fate.stored_after > 0)
        host.count("double_fire", fate.times > 1)
        for _ in range(fate.times):
            host.trace("server", "fire", stored.subject)
            self.store(armed.schedule.target, stored.body, stored.headers)
        # The subject is purged without a look at what it holds by now, an acknowledged replacement included.
        host.count("purged_replacement", self.stream.last_seq_of(stored.subject) > stored.seq)
        self.purge(stored.subject, 0)

    # --- consumers ----------------------------------------------------------------------------------------------------

    def open_consumer(self, name: str, subject: str, *, ack_wait: float | None, max_ack_pending: int) -> Consumer:
        """The consumer of that name, created if it is missing."""
        consumer = self.consumers.get(name)
        if consumer is not None:
            if (consumer.filter_subject, consumer.ack_wait, consumer.max_ack_pending) != (
                subject,
                ack_wait,
                max_ack_pending,
            ):
                raise Rejected("consumer already exists", CONSUMER_EXISTS)
            return consumer
        if self.stream.spec.retention == "workqueue":
            for other in self.consumers.values():
                if overlap(other.filter_subject, subject):
                    raise ConsumerConflict(f"consumer {other.name} has subjects of {subject}")
        consumer = self.consumers[name] = Consumer(
            self.stream.spec.name,
            name,
            subject,
            ack_wait=ack_wait,
            max_ack_pending=max_ack_pending,
            backlog=(stored.seq for stored in self.stream.matching(subject)),
        )
        self._host.trace("server", "consumer created", f"{consumer.stream} {name}")
        return consumer

    def delete_consumer(self, name: str) -> bool:
        """Delete a consumer and tell its readers; False if there is none."""
        consumer = self.consumers.pop(name, None)
        if consumer is None:
            return False
        pulls, consumer.pulls = consumer.pulls, []
        for pull in pulls:
            pull.deleted()
        self._host.trace("server", "consumer deleted", f"{consumer.stream} {name}")
        return True

    def deliver(self, consumer: Consumer) -> None:
        """Deliver what can be delivered, e.g. because a reader has room again."""
        if (
            consumer.pulls
            and self.consumers.get(consumer.name) is consumer
            and consumer.deliver(self.stream.get, self._host.scheduler.now())
        ):
            self._watch_ack_wait(consumer)

    def ack(self, name: str, seq: int) -> None:
        """An acknowledgement arrives. It names a consumer and a stream sequence, so it counts for whichever consumer
        of that name has come past that sequence by now."""
        consumer = self.consumers.get(name)
        if consumer is None or not consumer.ack(seq):
            return
        if self.stream.spec.retention == "workqueue" and (stored := self.remove(seq)) is not None:
            self._acked.append(stored)
            self._host.trace(name, "acked", stored.subject)
        self.deliver(consumer)

    def in_progress(self, name: str, seq: int) -> None:
        """A reader asks for more time."""
        consumer = self.consumers.get(name)
        if consumer is not None:
            consumer.in_progress(seq, self._host.scheduler.now())

    def _watch_ack_wait(self, consumer: Consumer) -> None:
        deadline = consumer.first_deadline
        if consumer.ack_wait is not None and deadline is not None and not consumer.watched:
            consumer.watched = True
            self._host.later(deadline, partial(self._ack_wait_over, consumer))

    def _ack_wait_over(self, consumer: Consumer) -> None:
        consumer.watched = False
        if self.consumers.get(consumer.name) is consumer:
            consumer.expire(self._host.scheduler.now())
            self.deliver(consumer)
            self._watch_ack_wait(consumer)

    # --- death and return of the server -------------------------------------------------------------------------------

    def server_died(self) -> None:
        """All readers are gone."""
        for consumer in self.consumers.values():
            consumer.pulls.clear()

    def server_came_back_from_kill(self, forget_acks: int | None) -> None:
        """Read everything in again: schedules, ids of duplicates, and acknowledgements but for the forgotten ones."""
        for armed in self._armed.values():
            armed.covered = armed.stays_covered
        self._read_in()
        self._forget_acks(forget_acks)
        for consumer in self.consumers.values():
            self._forget_deliveries(consumer)
            self._watch_ack_wait(consumer)

    def server_came_back_from_stop(self) -> None:
        """Read everything in again, as it was written down."""
        for armed in self._armed.values():
            armed.stays_covered = armed.covered
        self._read_in()
        for consumer in self.consumers.values():
            self._watch_ack_wait(consumer)

    def _read_in(self) -> None:
        self.stream.forget_duplicates_of_removed()
        for seq, armed in self._armed.items():
            armed.collected = False
            self._arm(seq, armed)
        for seq, due in self._expiring.items():
            self._host.later(due, partial(self._expire, seq))
        for consumer in self.consumers.values():
            self._host.count("forgotten_below_floor", consumer.forgot_below_floor())
            consumer.watched = False

    def _forget_deliveries(self, consumer: Consumer) -> None:
        share, rng = self._host.faults.forgotten_delivery, self._host.rng
        if share > 0:
            forgotten = [seq for seq in consumer.unacked if rng.random() < share]
            consumer.forgot_delivery(forgotten)
            self._host.count("forgotten_delivery", len(forgotten))

    def _forget_acks(self, count: int | None) -> None:
        host = self._host
        share = host.faults.forgotten_ack
        if count is None:
            lost = [stored for stored in self._acked if share > 0 and host.rng.random() < share]
        else:
            lost = list(self._acked)[-count:] if count > 0 else []
        self._acked.clear()
        host.count("forgotten_ack", len(lost))
        if lost:
            self.stream.bring_back(lost)
        for stored in lost:
            for consumer in self.consumers.values():
                if consumer.wants(stored.subject):
                    consumer.forgot_ack(stored.seq, host.scheduler.now())
