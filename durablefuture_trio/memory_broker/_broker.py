"""The broker port over one link to a `MemoryServer`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import outcome
import trio

from durablefuture_trio.memory_broker._consumer import Consumer
from durablefuture_trio.memory_broker._faults import FaultPlan
from durablefuture_trio.memory_broker._link import MemoryLink
from durablefuture_trio.memory_broker._reader import MemoryReader
from durablefuture_trio.memory_broker._schedulers import Process, ThisProcess
from durablefuture_trio.memory_broker._subjects import check_sendable, matcher
from durablefuture_trio.ports.broker import (
    NO_HEADERS,
    Append,
    AppendOutcome,
    BrokerError,
    BrokerLimits,
    ConsumerState,
    Headers,
    Incomplete,
    Message,
    NoAnswer,
    Stored,
    StreamSpec,
    StreamState,
    TooLarge,
)

if TYPE_CHECKING:
    from durablefuture_trio.memory_broker._server import MemoryServer

T = TypeVar("T")

MANY_SUBJECTS = 1000
PAGE_SIZE = 256
LISTEN_BUFFER = 4096
"""Core messages kept for a slow listener."""


class Subscription:
    """A core subscription of one link."""

    def __init__(self, subject: str, link: MemoryLink, receive: Callable[[Message], None]) -> None:
        self.wants = matcher(subject)
        self._link = link
        self._receive = receive

    def receive(self, message: Message) -> None:
        """The server passes a message on."""
        self._link.receive(partial(self._receive, message))


class MemoryBroker:
    """`Broker`: made by `MemoryServer.connect`.

    Besides the port: `attach_reader` reads without waiting, for a simulation without an event loop, and `kill` is the
    death of the process that holds this side.
    """

    def __init__(
        self,
        server: MemoryServer,
        name: str,
        *,
        faults: FaultPlan | None,
        answer_timeout: float,
        process: Process | None = None,
    ) -> None:
        self._server = server
        self._link = MemoryLink(server, name, faults, answer_timeout, process or ThisProcess(server.scheduler))

    @property
    def limits(self) -> BrokerLimits:
        return self._server.limits

    @property
    def link(self) -> MemoryLink:
        return self._link

    def kill(self) -> None:
        """The process dies: nothing is called back any more. What it has sent may still land."""
        self._link.kill()

    # --- publishing ---------------------------------------------------------------------------------------------------

    def append_soon(self, append: Append, on_outcome: Callable[[AppendOutcome], None]) -> None:
        server, link = self._server, self._link
        check_sendable(append.subject, append.headers)
        if append.schedule is not None:
            check_sendable(append.schedule.target)
        size = message_size(append)
        if size > server.limits.max_payload_bytes:
            error = TooLarge(f"{append.subject}: {size} bytes exceed max_payload {server.limits.max_payload_bytes}")
            link.process.call_at(server.scheduler.now(), partial(on_outcome, error))
            return
        perform = partial(server.append, append, link.name)
        fate = link.faults.append_fate(server.rng, link.name, append, link.answer_timeout)
        if fate is None:
            link.ask(perform, on_outcome, is_append=True)
        else:
            server.trace(link.name, f"{fate}", append.subject)
            link.ask(
                perform,
                on_outcome,
                is_append=True,
                lands_after=fate.lands_after,
                answered=fate.answered,
                answer_after=fate.answer_after,
            )

    async def append(self, append: Append) -> int:
        task = trio.lowlevel.current_task()
        listening = True

        def on_outcome(result: AppendOutcome) -> None:
            if listening:
                trio.lowlevel.reschedule(task, _as_outcome(result))

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal listening
            listening = False
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.checkpoint_if_cancelled()
        self.append_soon(append, on_outcome)
        seq: int = await trio.lowlevel.wait_task_rescheduled(abort)
        return seq

    # --- asking -------------------------------------------------------------------------------------------------------

    async def provision(self, streams: Sequence[StreamSpec]) -> None:
        await self._ask(partial(self._server.provision, tuple(streams)))

    async def last(self, stream: str, subject: str, *, confirmed: bool = False) -> Stored | None:
        return await self._read(
            subject, lambda stale_by: self._server.last(stream, subject, confirmed=confirmed, stale_by=stale_by)
        )

    async def many(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        wanted = tuple(subjects)
        if len(wanted) > MANY_SUBJECTS:
            raise ValueError(f"at most {MANY_SUBJECTS} subjects can be read at once, not {len(wanted)}")
        if not wanted:
            await trio.lowlevel.checkpoint()
            return []
        return await self._read(wanted[0], lambda stale_by: self._server.many(stream, wanted, stale_by))

    async def scan(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        while True:
            page = await self._read(subject, partial(self._page, stream, subject, after))
            for stored in page:
                yield stored
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].seq

    def _page(self, stream: str, subject: str, after: int, _stale_by: int) -> list[Stored]:
        return self._server.page(stream, subject, after, PAGE_SIZE)

    async def delete(self, stream: str, seq: int) -> bool:
        return await self._ask(partial(self._server.delete, stream, seq))

    async def purge(self, stream: str, subject: str, *, keep: int = 0) -> int:
        return await self._ask(partial(self._server.purge, stream, subject, keep))

    async def stream_state(self, stream: str) -> StreamState | None:
        return await self._ask(partial(self._server.stream_state, stream))

    async def consumers(self, stream: str) -> list[ConsumerState]:
        return await self._ask(partial(self._server.consumer_states, stream))

    async def delete_consumer(self, stream: str, name: str) -> bool:
        return await self._ask(partial(self._server.delete_consumer, stream, name))

    async def _read(self, subject: str, read: Callable[[int], T]) -> T:
        link = self._link
        fate = link.faults.read_fate(self._server.rng, subject)
        if fate is None:
            return await self._ask(partial(read, 0))
        self._server.trace(link.name, f"{fate}", subject)
        answer = await self._ask(partial(read, fate.stale_by), answered=fate.answered, answer_after=fate.answer_after)
        if fate.incomplete and isinstance(answer, list):
            self._server.count("incomplete_read")
            raise Incomplete(f"the answer to {subject} broke off")
        return answer

    async def _ask(self, perform: Callable[[], T], *, answered: bool = True, answer_after: float = 0.0) -> T:
        task = trio.lowlevel.current_task()

        def on_outcome(result: T | BrokerError) -> None:
            trio.lowlevel.reschedule(task, _as_outcome(result))

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._link.forget(exchange)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.checkpoint_if_cancelled()
        exchange = self._link.ask(perform, on_outcome, answered=answered, answer_after=answer_after)
        answer: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    # --- readers ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_reader(
        self,
        stream: str,
        name: str,
        subject: str,
        *,
        ack_wait: float | None,
        max_ack_pending: int = -1,
        credit_bytes: int = 4 * 1024 * 1024,
    ) -> AsyncIterator[MemoryReader]:
        opened: list[MemoryReader] = []
        generation = self._link.generation
        given_up = False

        def perform() -> MemoryReader:
            consumer = self._server.open_consumer(
                stream, name, subject, ack_wait=ack_wait, max_ack_pending=max_ack_pending
            )
            if given_up or generation != self._link.generation:
                # The consumer is made, but a pull for somebody who has gone finds no interest and is dropped.
                raise NoAnswer("nobody reads any more")
            opened.append(self._read_from(consumer, credit_bytes, None))
            return opened[0]

        try:
            yield await self._ask(perform)
        finally:
            given_up = True
            for reader in opened:
                reader.close()

    def attach_reader(
        self,
        stream: str,
        name: str,
        subject: str,
        *,
        ack_wait: float | None,
        on_ready: Callable[[], None],
        max_ack_pending: int = -1,
        credit_bytes: int = 4 * 1024 * 1024,
    ) -> MemoryReader:
        """`open_reader` at once: `on_ready` is called by the scheduler when `MemoryReader.take` has something to say.

        Raises:
            ConsumerConflict, Rejected: as `open_reader`. NoAnswer: the link is down or the server does not answer.
        """
        if not self._link.up or not self._server.running or self._server.paused:
            raise NoAnswer("the server does not answer")
        consumer = self._server.open_consumer(stream, name, subject, ack_wait=ack_wait, max_ack_pending=max_ack_pending)
        return self._read_from(consumer, credit_bytes, on_ready)

    def _read_from(self, consumer: Consumer, credit_bytes: int, on_ready: Callable[[], None] | None) -> MemoryReader:
        reader = MemoryReader(self._server, self._link, consumer, credit_bytes, on_ready)
        self._link.attach(reader)
        self._server.add_pull(consumer, reader)
        return reader

    # --- core ---------------------------------------------------------------------------------------------------------

    def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        check_sendable(subject, headers)
        size = message_size(Append(subject=subject, body=body, headers=headers))
        if size > self._server.limits.max_payload_bytes:
            raise TooLarge(f"{subject}: {size} bytes exceed max_payload {self._server.limits.max_payload_bytes}")
        if self._link.faults.tell_is_lost(self._server.rng):
            self._server.count("lost_tell")
        else:
            self._link.post(partial(self._server.tell, Message(subject=subject, body=body, headers=headers)))

    @asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator[trio.MemoryReceiveChannel[Message]]:
        send, receive = trio.open_memory_channel[Message](LISTEN_BUFFER)

        def on_message(message: Message) -> None:
            try:
                send.send_nowait(message)
            except trio.WouldBlock:
                receive.receive_nowait()
                send.send_nowait(message)
            except trio.ClosedResourceError:
                # It was under way when the listener left.
                return

        subscription = Subscription(subject, self._link, on_message)
        await self._ask(partial(self._server.subscribe, subscription))
        try:
            with send, receive:
                yield receive
        finally:
            self._server.unsubscribe(subscription)


def message_size(append: Append) -> int:
    """Bytes of the body and of the headers as they go over the wire."""
    size = len(append.body)
    headers = 0
    for name, value in append.headers.items():
        headers += len(name) + len(value.encode()) + 4
    if append.message_id is not None:
        headers += len("Nats-Msg-Id: \r\n") + len(append.message_id.encode())
    if append.expect_last is not None:
        headers += len("Nats-Expected-Last-Subject-Sequence: \r\n") + len(str(append.expect_last))
    if append.schedule is not None:
        headers += len("Nats-Schedule: @at 2000-01-01T00:00:00.000000Z\r\nNats-Schedule-Target: \r\n")
        headers += len(append.schedule.target.encode())
    if append.neutralise:
        headers += len("Nats-Rollup: sub\r\nNats-TTL: 1s\r\n")
    return size + headers + len("NATS/1.0\r\n\r\n") if headers else size


def _as_outcome(result: T | BrokerError) -> outcome.Outcome[T]:
    return outcome.Error(result) if isinstance(result, BrokerError) else outcome.Value(result)
