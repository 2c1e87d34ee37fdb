"""A reader of a durable consumer, on the side of the process that reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import trio

from durablefuture_trio.memory_broker._consumer import Consumer
from durablefuture_trio.memory_broker._link import MemoryLink
from durablefuture_trio.ports.broker import Delivery, ReaderLost

if TYPE_CHECKING:
    from durablefuture_trio.memory_broker._server import MemoryServer

HEARTBEAT_S = 2.0
"""A heartbeat carries the last consumer sequence, so a lost delivery shows by then at the latest."""


class MemoryReader:
    """`Reader`, which can also be read without waiting.

    Attributes:
        on_ready: called (from the scheduler) when `take` has something new to say.
    """

    def __init__(
        self,
        server: MemoryServer,
        link: MemoryLink,
        consumer: Consumer,
        credit_bytes: int,
        on_ready: Callable[[], None] | None,
    ) -> None:
        self.on_ready = on_ready
        self._server = server
        self._link = link
        self._consumer = consumer
        self._credit_bytes = credit_bytes
        self._outstanding_bytes = 0
        self._came: list[Delivery] = []
        self._seen_seq = consumer.delivered_seq
        self._lost: Literal["gap", "link", "deleted", "silent"] | None = None
        self._told = False
        self._readable = trio.lowlevel.ParkingLot()
        # Readers that share a consumer see gaps by nature; there the acknowledgement wait heals a loss.
        self._contiguous = consumer.ack_wait is None

    # --- the port -----------------------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[Delivery]:
        await trio.lowlevel.checkpoint()
        while True:
            if came := self.take():
                return came
            await self._readable.park()

    def ack(self, delivery: Delivery) -> None:
        fate = self._link.faults.ack_fate(self._server.rng, delivery.subject)
        lands_after = fate.lands_after if fate is not None else 0.0
        self._link.post(partial(self._server.ack, delivery.reply), lands_after=lands_after)

    def in_progress(self, delivery: Delivery) -> None:
        fate = self._link.faults.ack_fate(self._server.rng, delivery.subject)
        lands_after = fate.lands_after if fate is not None else 0.0
        self._link.post(partial(self._server.in_progress, delivery.reply), lands_after=lands_after)

    # --- without waiting ----------------------------------------------------------------------------------------------

    def take(self) -> list[Delivery]:
        """What has come since the last call, perhaps nothing.

        Raises:
            ReaderLost: as `receive`, once everything that had come before is taken.
        """
        came = self._came
        self._told = False
        if not came:
            if self._lost is not None:
                raise ReaderLost(self._lost)
            return came
        self._came = []
        self._outstanding_bytes -= sum(_size(delivery) for delivery in came)
        if self._lost is None and self._consumer.has_more:
            self._link.post(partial(self._server.deliver, self._consumer))
        elif self._lost is not None:
            self._tell()
        return came

    def close(self) -> None:
        """Close the pulls; the consumer stays."""
        self._detach()
        if self._lost is None:
            self._lost = "link"
            self._readable.unpark_all()

    def _detach(self) -> None:
        self._link.detach(self)
        self._link.post(partial(self._server.remove_pull, self._consumer, self))

    # --- the server's side --------------------------------------------------------------------------------------------

    def room_for(self, size_bytes: int) -> bool:
        """`Pull.room_for`; a single message always fits."""
        return self._outstanding_bytes == 0 or self._outstanding_bytes + size_bytes <= self._credit_bytes

    def send(self, delivery: Delivery, consumer_seq: int) -> None:
        """`Pull.send`."""
        self._outstanding_bytes += _size(delivery)
        fate = self._link.faults.delivery_fate(self._server.rng, delivery.subject)
        if not self._link.up:
            self._server.count("delivered_into_dead_link")
        if fate is not None and fate.arrives_after is None:
            self._server.count("lost_delivery", self._link.up)
            if self._contiguous:
                due = self._server.scheduler.now() + HEARTBEAT_S
                self._link.process.call_at(due, partial(self._heartbeat, consumer_seq))
            return
        self._link.receive(
            partial(self._arrived, delivery, consumer_seq), after=fate.arrives_after or 0.0 if fate is not None else 0.0
        )

    def deleted(self) -> None:
        """`Pull.deleted`."""
        self._link.receive(partial(self._lose, "deleted"))

    def link_lost(self) -> None:
        """`Attached.link_lost`: the server goes on delivering into the void until it notices."""
        low, high = self._link.faults.dead_link_for
        remove = partial(self._server.remove_pull, self._consumer, self)
        if high > 0 and self._server.running:
            self._server.later(self._server.scheduler.now() + self._server.rng.uniform(low, high), remove)
        else:
            remove()
        self._link.process.enter(partial(self._lose, "link"))

    def went_silent(self) -> None:
        """`Attached.went_silent`."""
        self._link.process.enter(self._give_up)

    def _give_up(self) -> None:
        self._lose("silent")
        self._detach()

    # --- what comes ---------------------------------------------------------------------------------------------------

    def _arrived(self, delivery: Delivery, consumer_seq: int) -> None:
        if self._lost is not None:
            return
        if self._contiguous and consumer_seq != self._seen_seq + 1:
            self._lose("gap")
            self._detach()
            return
        self._seen_seq = consumer_seq
        self._came.append(delivery)
        self._tell()

    def _heartbeat(self, consumer_seq: int) -> None:
        if self._lost is None and self._seen_seq < consumer_seq:
            self._lose("gap")
            self._detach()

    def _lose(self, reason: Literal["gap", "link", "deleted", "silent"]) -> None:
        if self._lost is None:
            self._lost = reason
            self._server.trace(self._link.name, f"reader lost: {reason}", self._consumer.name)
            self._link.detach(self)
            self._tell()

    def _tell(self) -> None:
        if self._link.dead:
            return
        self._readable.unpark_all()
        if self.on_ready is not None and not self._told:
            self._told = True
            self._server.scheduler.call_at(self._server.scheduler.now(), self._call_on_ready)

    def _call_on_ready(self) -> None:
        if self.on_ready is not None and not self._link.dead:
            self.on_ready()


def _size(delivery: Delivery) -> int:
    return len(delivery.body) + len(delivery.subject)
