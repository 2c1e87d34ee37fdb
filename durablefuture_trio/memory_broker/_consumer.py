"""One durable pull consumer, as the server keeps it: what is to be delivered, what waits for an acknowledgement."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from durablefuture_trio.memory_broker._subjects import matcher
from durablefuture_trio.ports.broker import ConsumerState, Delivery, Stored

_CLOCK_GRAIN_S = 1e-5
"""A timer may go off this much early by the server's clock: Unix seconds in a float are no finer than a microsecond."""


class Pull(Protocol):
    """The server's side of a reader: a standing request for messages."""

    def room_for(self, size_bytes: int) -> bool:
        """Whether the reader's credit admits this much more."""
        ...

    def send(self, delivery: Delivery, consumer_seq: int) -> None:
        """Send it down the link; it may not get there."""
        ...

    def deleted(self) -> None:
        """Tell the reader that its consumer is gone."""
        ...


class _Unacked:
    """Attributes:
    deadline: when the wait ends.
    delivered: how often it was delivered.
    consumer_seq: of its first delivery.
    """

    __slots__ = ("consumer_seq", "deadline", "delivered")

    def __init__(self, deadline: float, delivered: int, consumer_seq: int) -> None:
        self.deadline = deadline
        self.delivered = delivered
        self.consumer_seq = consumer_seq


class Consumer:
    """Explicit acknowledgement, deliver all, any number of readers at once.

    Args:
        name: the durable name.
        filter_subject: pattern of what it delivers.
        ack_wait: seconds until redelivery; None: never.
        max_ack_pending: deliveries that may wait for an acknowledgement; -1: any number.
        backlog: sequences the stream already holds for it, in order.
    """

    def __init__(
        self,
        stream: str,
        name: str,
        filter_subject: str,
        *,
        ack_wait: float | None,
        max_ack_pending: int,
        backlog: Iterable[int],
    ) -> None:
        self.stream = stream
        self.name = name
        self.filter_subject = filter_subject
        self.ack_wait = ack_wait
        self.max_ack_pending = max_ack_pending
        self.wants: Callable[[str], bool] = matcher(filter_subject)
        self.pulls: list[Pull] = []
        self.watched = False  # somebody will call `expire`
        self._turn = 0
        self.delivered_seq = 0
        # Ordered dicts, not dicts: taking from the front of a dict steps over everything taken before.
        self._todo: OrderedDict[int, None] = OrderedDict.fromkeys(backlog)
        # In the order of their deadlines: the wait is one constant, and whoever starts anew goes to the end.
        self._unacked: OrderedDict[int, _Unacked] = OrderedDict()
        self._again: OrderedDict[int, None] = OrderedDict()
        self._passed = 0  # the highest stream sequence delivered
        # Up to here everything is acknowledged, the server believes: by consumer and by stream sequence.
        self._floor_consumer_seq = 0
        self._floor_seq = 0

    def state(self) -> ConsumerState:
        return ConsumerState(name=self.name, ack_pending=len(self._unacked), pending=len(self._todo))

    @property
    def has_more(self) -> bool:
        """Whether something waits to be delivered."""
        return bool(self._todo or self._again)

    # --- what the stream tells it -------------------------------------------------------------------------------------

    def added(self, seq: int) -> None:
        """The stream stored a message this consumer wants."""
        self._todo[seq] = None

    def removed(self, seq: int) -> None:
        """The stream holds this message no longer."""
        self._todo.pop(seq, None)
        self.ack(seq)

    def purged(self, seqs: Iterable[int]) -> None:
        """These are about to be purged by their subject. The floor jumps above deliveries that still wait for their
        acknowledgement: from then on it is wrong (m)."""
        for seq in seqs:
            unacked = self._unacked.pop(seq, None)
            if unacked is not None:
                self._again.pop(seq, None)
                self._floor_consumer_seq = max(self._floor_consumer_seq, unacked.consumer_seq)

    def forgot_below_floor(self) -> int:
        """The server came back: what is at or below its floor it takes for acknowledged. It is neither waited for nor
        delivered again, although the stream holds it (m). Returns how many that are."""
        forgotten = [seq for seq in self._unacked if seq <= self._floor_seq]
        for seq in forgotten:
            del self._unacked[seq]
            self._again.pop(seq, None)
        return len(forgotten)

    def forgot_ack(self, seq: int, now: float) -> None:
        """The server came back without an acknowledgement: the message waits for one again."""
        self._unacked[seq] = _Unacked(self._deadline(now), 1, 0)
        self._floor_consumer_seq = self._floor_seq = 0

    def forgot_delivery(self, seqs: Iterable[int]) -> None:
        """The server came back without having delivered these: they are to be delivered for the first time."""
        for seq in seqs:
            del self._unacked[seq]
            self._again.pop(seq, None)
            self._todo[seq] = None
        self._todo = OrderedDict.fromkeys(sorted(self._todo))
        self._floor_consumer_seq = self._floor_seq = 0

    @property
    def unacked(self) -> list[int]:
        """The sequences that wait for an acknowledgement."""
        return list(self._unacked)

    # --- what readers tell it -----------------------------------------------------------------------------------------

    def ack(self, seq: int) -> bool:
        """Acknowledge by stream sequence alone, whichever consumer of this name delivered it.

        Returns:
            Whether it counts, and removes the message from a work queue: for everything up to the last delivery of this
            consumer, also what it never delivered because it does not want that subject (m).
        """
        unacked = self._unacked.pop(seq, None)
        if unacked is None:
            return seq <= self._passed and seq not in self._todo
        self._again.pop(seq, None)
        if unacked.consumer_seq == self._floor_consumer_seq + 1:
            self._raise_floor(seq, unacked)
        return True

    def _raise_floor(self, seq: int, unacked: _Unacked) -> None:
        above = min((waiting for waiting in self._unacked if waiting > seq), default=None)
        if above is None:
            self._floor_consumer_seq, self._floor_seq = unacked.consumer_seq, seq
        else:
            self._floor_consumer_seq, self._floor_seq = self._unacked[above].consumer_seq - 1, above - 1

    def in_progress(self, seq: int, now: float) -> None:
        """Start the wait of this delivery anew."""
        unacked = self._unacked.get(seq)
        if unacked is not None and seq not in self._again:
            del self._unacked[seq]
            unacked.deadline = self._deadline(now)
            self._unacked[seq] = unacked

    # --- delivering ---------------------------------------------------------------------------------------------------

    def deliver(self, get: Callable[[int], Stored | None], now: float) -> bool:
        """Send what there is to readers with room; whether a wait for acknowledgements has begun."""
        begun = False
        while self.pulls and (self._again or self._todo):
            repeated = bool(self._again)
            if not repeated and 0 <= self.max_ack_pending <= len(self._unacked):
                break
            seq = next(iter(self._again if repeated else self._todo))
            stored = get(seq)
            if stored is None:
                self.removed(seq)
                continue
            pull = self._next_pull(len(stored.body) + len(stored.subject))
            if pull is None:
                break
            del (self._again if repeated else self._todo)[seq]
            earlier = self._unacked.pop(seq, None)
            delivered = earlier.delivered + 1 if earlier is not None else 1
            self.delivered_seq += 1
            self._passed = max(self._passed, seq)
            first_seq = earlier.consumer_seq if earlier is not None else self.delivered_seq
            self._unacked[seq] = _Unacked(self._deadline(now), delivered, first_seq)
            begun = True
            pull.send(self._delivery(stored, delivered), self.delivered_seq)
        return begun and self.ack_wait is not None

    def expire(self, now: float) -> None:
        """Put what has waited too long up for redelivery."""
        for seq, unacked in self._unacked.items():
            if unacked.deadline > now + _CLOCK_GRAIN_S:
                break
            self._again[seq] = None

    @property
    def first_deadline(self) -> float | None:
        """When the oldest wait ends."""
        for seq, unacked in self._unacked.items():
            if seq not in self._again:
                return unacked.deadline
        return None

    def _deadline(self, now: float) -> float:
        return float("inf") if self.ack_wait is None else now + self.ack_wait

    def _next_pull(self, size_bytes: int) -> Pull | None:
        pulls = self.pulls
        for step in range(len(pulls)):
            place = (self._turn + step) % len(pulls)
            if pulls[place].room_for(size_bytes):
                self._turn = place + 1
                return pulls[place]
        return None

    def _delivery(self, stored: Stored, delivered: int) -> Delivery:
        return Delivery(
            subject=stored.subject,
            seq=stored.seq,
            time=stored.time,
            body=stored.body,
            headers=stored.headers,
            delivered=delivered,
            pending=len(self._todo),
            reply=ack_address(self.stream, self.name, stored.seq),
        )


def ack_address(stream: str, consumer: str, seq: int) -> str:
    """Where an acknowledgement goes: nothing in it tells a consumer from a later one of the same name."""
    return f"{stream} {consumer} {seq}"


def parse_ack_address(address: str) -> tuple[str, str, int]:
    """The parts of an `ack_address`."""
    stream, consumer, seq = address.split(" ")
    return stream, consumer, int(seq)
