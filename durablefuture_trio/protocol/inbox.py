"""Opening a shard's inbox under an epoch, and knowing when everything that was in it at that time has been read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from durablefuture_trio.ports.broker import Broker, Delivery, Reader
from durablefuture_trio.protocol.subjects import Subjects

_PREFIX = "own-"


class Superseded(Exception):
    """The inbox has a consumer of a higher epoch: somebody else owns the shard."""


def consumer_name(epoch: int) -> str:
    """The consumer of an epoch. A name is never used again: an acknowledgement of an older epoch reaches nothing."""
    return f"{_PREFIX}{epoch}"


def epoch_of(name: str) -> int:
    """The epoch in a consumer's name; -1 for a name that is none of ours."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if name.startswith(_PREFIX) and digits.isdigit() else -1


class Inbox:
    """An open inbox: the reader, and the barrier."""

    def __init__(self, reader: Reader, barrier: int) -> None:
        self._reader = reader
        self.barrier = barrier
        """Last sequence in the stream when the inbox was opened; 0 if nothing was waiting."""

    async def receive(self) -> list[Delivery]:
        """The next deliveries, at least one.

        Raises:
            ReaderLost: open it again under a new epoch.
        """
        return list(await self._reader.receive())

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery of this epoch."""
        self._reader.ack(delivery)

    def is_past_barrier(self, delivery: Delivery) -> bool:
        """Whether nothing that was waiting at the opening comes after this delivery."""
        return delivery.seq >= self.barrier or delivery.pending == 0


@asynccontextmanager
async def open_inbox(
    broker: Broker, subjects: Subjects, shard: int, epoch: int, *, name_of: Callable[[int], str] = consumer_name
) -> AsyncIterator[Inbox]:
    """Replace the consumers of lower epochs by this epoch's, and read the inbox from its start.

    Only the holder of the epoch's lease may do this.

    Raises:
        Superseded: a higher epoch has been here. ConsumerConflict, BrokerError: as the server says.
    """
    stream = subjects.inbox_stream(shard)
    for consumer in await broker.consumers(stream):
        if epoch_of(consumer.name) >= epoch:
            raise Superseded(f"{stream} is read by {consumer.name}, this is epoch {epoch}")
        await broker.delete_consumer(stream, consumer.name)
    name = name_of(epoch)
    async with broker.open_reader(
        stream, name, subjects.inbox_filter(shard), ack_wait=None, max_ack_pending=-1
    ) as reader:
        state = await broker.stream_state(stream)
        own = next((item for item in await broker.consumers(stream) if item.name == name), None)
        waiting = own is not None and (own.pending or own.ack_pending)
        yield Inbox(reader, state.last_seq if waiting and state is not None else 0)
