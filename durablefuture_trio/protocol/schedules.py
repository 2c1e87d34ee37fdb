"""Message schedules: how a parked run is woken while nobody holds it in memory.

One subject per deciding commit, written by the one writer that won the number: a fire can only purge itself, and no
stale writer can replace a live schedule. A fire that is not the armed one is a harmless wake-up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import msgspec

from durablefuture_trio.engine.requests import TimerFire
from durablefuture_trio.ports.broker import Append, Broker, BrokerError, Schedule
from durablefuture_trio.protocol.envelope import encode_envelope
from durablefuture_trio.protocol.subjects import Subjects

OVERDUE_S = 2.0
"""A schedule this late is taken for one that came due while the store was full: the server never fires it by itself."""

_fire_decoder = msgspec.msgpack.Decoder(TimerFire)


class ArmedSchedule(msgspec.Struct, frozen=True, order=True):
    """A stored schedule."""

    due: float
    workflow_id: str
    run_id: str
    n: int


class Schedules:
    """The schedules of one shard, as far as this owner knows them."""

    def __init__(self, broker: Broker, subjects: Subjects, shard: int) -> None:
        self._broker = broker
        self._subjects = subjects
        self._shard = shard
        self._armed: dict[str, dict[int, float]] = {}
        self._heap: list[ArmedSchedule] = []

    def of(self, workflow_id: str) -> dict[int, float]:
        """The id's schedules, commit number to due time; the owner of the id keeps it up to date."""
        return self._armed.setdefault(workflow_id, {})

    def forget(self, workflow_id: str) -> None:
        """The owner of the id is dropped; what is still armed stays known."""
        if not self._armed.get(workflow_id):
            self._armed.pop(workflow_id, None)

    @property
    def count(self) -> int:
        """How many are believed to be armed."""
        return sum(len(armed) for armed in self._armed.values())

    async def recover(self) -> None:
        """Read what earlier owners have armed.

        Raises:
            BrokerError: as the server says.
        """
        subjects = self._subjects
        self._heap.clear()
        for armed in self._armed.values():
            armed.clear()
        stream = subjects.inbox_stream(self._shard)
        async for stored in self._broker.scan(stream, subjects.schedule_filter(self._shard)):
            if not stored.body:
                continue
            try:
                fire = _fire_decoder.decode(stored.body)
            except msgspec.MsgspecError:
                continue
            self.of(fire.workflow_id)[fire.n] = fire.due
            self.watch(fire.workflow_id, fire.run_id, fire.n, fire.due)

    def append_for(self, workflow_id: str, run_id: str, n: int, due: float) -> Append:
        """The publish that arms a schedule."""
        fire = TimerFire(workflow_id=workflow_id, run_id=run_id, n=n, due=due)
        return Append(
            subject=self._subjects.schedule(workflow_id, n),
            body=encode_envelope(fire),
            schedule=Schedule(due=due, target=self._subjects.inbox(workflow_id, "timer")),
        )

    def arm(
        self, workflow_id: str, run_id: str, n: int, due: float, on_done: Callable[[BrokerError | None], None]
    ) -> None:
        """Store a schedule; `on_done` gets None, or the error after which it is unknown whether it is stored."""

        def answered(outcome: int | BrokerError) -> None:
            if isinstance(outcome, int):
                self.watch(workflow_id, run_id, n, due)
                on_done(None)
            else:
                on_done(outcome)

        self._broker.append_soon(self.append_for(workflow_id, run_id, n, due), answered)

    def neutralise(self, workflow_id: str, n: int) -> None:
        """Replace a schedule that is not needed any more; best effort, its fire would be harmless."""
        append = Append(subject=self._subjects.schedule(workflow_id, n), neutralise=True)
        self._broker.append_soon(append, lambda outcome: None)

    def watch(self, workflow_id: str, run_id: str, n: int, due: float) -> None:
        """Look after a schedule until it has fired."""
        heapq.heappush(self._heap, ArmedSchedule(due, workflow_id, run_id, n))

    @property
    def next_check(self) -> float | None:
        """When `republish_overdue` has something to look at, Unix seconds."""
        return self._heap[0].due + OVERDUE_S if self._heap else None

    def republish_overdue(self, now: float) -> list[ArmedSchedule]:
        """Store again what should have fired by now and has not; returns those."""
        overdue: list[ArmedSchedule] = []
        while self._heap and self._heap[0].due + OVERDUE_S <= now:
            schedule = heapq.heappop(self._heap)
            if self._armed.get(schedule.workflow_id, {}).get(schedule.n) != schedule.due:
                continue
            overdue.append(schedule)
            self._broker.append_soon(
                self.append_for(schedule.workflow_id, schedule.run_id, schedule.n, schedule.due),
                lambda outcome: None,
            )
            # Looked at again after the same time, should this one be lost as well.
            heapq.heappush(self._heap, msgspec.structs.replace(schedule, due=now))
            self._armed[schedule.workflow_id][schedule.n] = now
        return overdue
