"""The Trio side of the connection: who waits for which answer, and what happens when none comes.

Everything runs in one thread: messages are handed over by nats-py's parser, and whoever waits is called or rescheduled
right there. A task per message exists nowhere.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import outcome
import trio
import trio_asyncio  # type: ignore[import-untyped]  # it has no annotations

from durablefuture_trio.nats_bridge._aio import ConnectFailed, Connection, open_connection
from durablefuture_trio.nats_bridge._wire import publish_command, status_of, subscribe_command, unsubscribe_command
from durablefuture_trio.nats_bridge.options import ConnectOptions
from durablefuture_trio.ports.broker import AppendOutcome, NoAnswer

logger = logging.getLogger("durablefuture_trio.nats")

Sink = Callable[[bytes, bytes, bytes, "bytes | None"], None]
"""Gets subject, reply, body and header block of each message of a subscription."""

_MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""What may wait for the socket; past it nothing more is taken. Only a stopped server gets that far."""

_RECONNECT_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.5)
_CONGESTION_CHECK_S = 0.05
_LATE_S = 1.0


class Request:
    """A question with one answer, or with several of which `is_last` knows the last."""

    __slots__ = ("answers", "deadline", "is_last", "task")

    def __init__(
        self, task: trio.lowlevel.Task, deadline: float, is_last: Callable[[bytes | None], bool] | None
    ) -> None:
        self.task = task
        self.deadline = deadline
        self.is_last = is_last
        self.answers: list[tuple[bytes, bytes | None]] = []


class Subscription:
    """A subscription of ours. ``on_lost`` (if any) makes it end with the connection; others are renewed."""

    __slots__ = ("on_lost", "sid", "sink", "subject")

    def __init__(self, sid: int, subject: bytes, sink: Sink, on_lost: Callable[[], None] | None) -> None:
        self.sid = sid
        self.subject = subject
        self.sink = sink
        self.on_lost = on_lost


class BridgeLink:
    """The connection to NATS as Trio sees it. Implements `ports.broker.Link`."""

    def __init__(self, options: ConnectOptions) -> None:
        self.options = options
        self.up = False
        self.generation = 0
        self.max_payload_bytes = 0
        self.server_version = ""
        self.problem: ConnectFailed | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._urls = list(options.urls)
        self._connection: Connection | None = None
        self._congested = False
        self._out: list[bytes] = []
        self._undelivered: list[tuple[Callable[[AppendOutcome], None], AppendOutcome]] = []
        self._pump_task: trio.lowlevel.Task | None = None
        self._tokens = itertools.count(1)
        self._sids = itertools.count(1)
        self._appends: dict[bytes, tuple[float, Callable[[AppendOutcome], None]]] = {}
        self._requests: dict[bytes, Request] = {}
        self._expiry_wanted = trio.Event()
        self._subscriptions: dict[int, Subscription] = {}
        self._decode: Callable[[bytes, bytes | None], AppendOutcome] | None = None
        self._nursery: trio.Nursery | None = None
        self._loop_closed = trio.Event()
        self._closing = False
        self.inbox = f"{options.inbox_prefix}.{os.urandom(12).hex()}".encode()
        self._answers_prefix = self.inbox + b".a."
        self.subscribe(self._answers_prefix + b"*", self._on_answer)

    async def changed(self, seen: int) -> int:
        """Wait until `generation` is another than `seen`, and return it."""
        if self.generation != seen:
            await trio.lowlevel.checkpoint()
        while self.generation == seen:
            await self._changed.park()
        return self.generation

    # --- sending ---

    def write(self, parts: tuple[bytes, ...]) -> bool:
        """Send protocol lines soon, together with all others of this moment; False if the link is down."""
        if not self.up or self._congested:
            return False
        self._out += parts
        if self._pump_task is not None:
            self._wake_pump()
        return True

    def append_soon(
        self, subject: bytes, headers: bytes, body: bytes, on_outcome: Callable[[AppendOutcome], None]
    ) -> None:
        """Publish to a stream; `on_outcome` gets what became of it."""
        if not self.up or self._congested:
            why = "too much is waiting to be sent" if self.up else "there is no connection"
            self.later(on_outcome, NoAnswer(f"{why}; nothing was sent"))
            return
        token = b"%d" % next(self._tokens)
        if not self._appends:
            self._expiry_wanted.set()
        self._appends[token] = (trio.current_time() + self.options.answer_timeout_s, on_outcome)
        self._out += publish_command(subject, self._answers_prefix + token, headers, body)
        if self._pump_task is not None:
            self._wake_pump()

    def later(self, on_outcome: Callable[[AppendOutcome], None], result: AppendOutcome) -> None:
        """Report an outcome that is known already, but not from within this call."""
        self._undelivered.append((on_outcome, result))
        if self._pump_task is not None:
            self._wake_pump()

    async def request(
        self, subject: bytes, body: bytes, is_last: Callable[[bytes | None], bool] | None = None
    ) -> list[tuple[bytes, bytes | None]]:
        """Ask, and wait for the answer: body and header block.

        Args:
            is_last: tells from its header block whether an answer is the last one; without it there is only one.

        Raises:
            NoAnswer: none came in time, or the link is down.
        """
        token = b"%d" % next(self._tokens)
        return await self._ask(token, publish_command(subject, self._answers_prefix + token, b"", body), is_last)

    async def echo(self) -> None:
        """A round trip of our own: all that was sent before has been processed by the server.

        Raises:
            NoAnswer: it did not come back.
        """
        token = b"%d" % next(self._tokens)
        await self._ask(token, publish_command(self._answers_prefix + token, b"", b"", b""), None)

    async def _ask(
        self, token: bytes, command: tuple[bytes, ...], is_last: Callable[[bytes | None], bool] | None
    ) -> list[tuple[bytes, bytes | None]]:
        if not self.write(command):
            await trio.lowlevel.checkpoint()
            raise NoAnswer("there is no connection; nothing was asked")
        request = Request(trio.lowlevel.current_task(), trio.current_time() + self.options.answer_timeout_s, is_last)
        self._requests[token] = request
        self._expiry_wanted.set()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._requests.pop(token, None)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return request.answers

    # --- subscriptions ---

    def new_inbox(self) -> bytes:
        """An address that was never used before: what was meant for an earlier reader must not reach a later one."""
        return b"%b.r.%d" % (self.inbox, next(self._tokens))

    def subscribe(self, subject: bytes, sink: Sink, on_lost: Callable[[], None] | None = None) -> Subscription:
        """Subscribe, now and after each reconnect; with `on_lost` only for this connection."""
        subscription = Subscription(next(self._sids), subject, sink, on_lost)
        self._subscriptions[subscription.sid] = subscription
        self.write((subscribe_command(subject, subscription.sid),))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; nothing more reaches its sink."""
        if self._subscriptions.pop(subscription.sid, None) is not None:
            self.write((unsubscribe_command(subscription.sid),))

    # --- what comes in ---

    def decode_with(self, decode: Callable[[bytes, bytes | None], AppendOutcome]) -> None:
        """Set how the answer to an append is read."""
        self._decode = decode

    def _on_message(self, sid: int, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        try:
            subscription.sink(subject, reply, body, headers)
        except Exception as error:  # noqa: BLE001 - nats-py's read loop would end in silence; raised by our nursery
            self._crash(error)

    def _on_answer(self, subject: bytes, _: bytes, body: bytes, headers: bytes | None) -> None:
        token = subject[len(self._answers_prefix) :]
        waiting = self._appends.pop(token, None)
        if waiting is not None:
            assert self._decode is not None
            waiting[1](self._decode(body, headers))
            return
        request = self._requests.get(token)
        if request is None:
            return
        request.answers.append((body, headers))
        if request.is_last is None or status_of(headers) == 503 or request.is_last(headers):
            del self._requests[token]
            trio.lowlevel.reschedule(request.task)
        else:
            request.deadline = trio.current_time() + self.options.answer_timeout_s

    def _crash(self, error: Exception) -> None:
        assert self._nursery is not None

        async def crash() -> NoReturn:
            raise error

        self._nursery.start_soon(crash)

    def _tell(self, on_outcome: Callable[[AppendOutcome], None], result: AppendOutcome) -> None:
        try:
            on_outcome(result)
        except Exception as error:  # noqa: BLE001 - others still have to be told; raised by our nursery
            self._crash(error)

    # --- tasks ---

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep a connection as long as this is open. What the body raises leaves as it is, in no group."""
        raised: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._pump)
                nursery.start_soon(self._expire)
                stop = await nursery.start(self._run_loop)
                try:
                    yield
                    await self._last_words()
                except BaseException as error:
                    raised = error
                    raise
                finally:
                    self._closing = True
                    stop.cancel()
                    with trio.CancelScope(shield=True):
                        await self._loop_closed.wait()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if raised is None or len(group.exceptions) > 1 or group.exceptions[0] is not raised:
                raise
        if raised is not None:
            raise raised

    async def settled(self) -> None:
        """Wait until the first connection is there, or a server refuses the credentials."""
        while not self.up and (self.problem is None or not self.problem.refused):
            await self._changed.park()

    async def _last_words(self) -> None:
        """What was sent at the end (acknowledgements) should arrive before the connection goes."""
        if self.up:
            with trio.move_on_after(1.0):
                try:
                    await self.echo()
                except NoAnswer:
                    logger.debug("the last messages to NATS may not have arrived")

    async def _run_loop(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        try:
            # In a task of its own, so that the loop does not show in the context of the broker's user.
            async with trio_asyncio.open_loop():
                with trio.CancelScope() as scope:
                    task_status.started(scope)
                    await self._keep_connected()
        finally:
            self._loop_closed.set()

    async def _keep_connected(self) -> NoReturn:
        failures = 0
        while True:
            closed = trio.Event()
            connection: Connection | None = None
            try:
                connection = await trio_asyncio.aio_as_trio(open_connection)(
                    self.options, self._urls, self._on_message, closed.set
                )
                failures = 0
                self._came_up(connection)
                await closed.wait()
            except ConnectFailed as error:
                if self.problem is None or str(self.problem) != str(error):
                    logger.info("no connection to NATS at %s: %s", self.options.safe_urls(), error)
                self.problem = error
                self._signal_change()
            finally:
                self._went_down(is_lost=closed.is_set() and not self._closing)
                if connection is not None:
                    with trio.CancelScope(shield=True):
                        await trio_asyncio.aio_as_trio(connection.close)()
            await trio.sleep(_RECONNECT_DELAYS_S[min(failures, len(_RECONNECT_DELAYS_S) - 1)])
            failures += 1

    def _came_up(self, connection: Connection) -> None:
        info = connection.info
        self.max_payload_bytes = int(info.get("max_payload", 1024 * 1024))
        self.server_version = str(info.get("version", ""))
        self._urls = [*self.options.urls, *(u.geturl() for u in connection.discovered_servers)]
        self._connection = connection
        self._congested = False
        self.problem = None
        self.up = True
        self._out = [subscribe_command(s.subject, s.sid) for s in self._subscriptions.values()]
        if self._pump_task is not None:
            self._wake_pump()
        logger.info("connected to NATS at %s, server %s", self.options.safe_urls(), self.server_version)
        self.generation += 1
        self._signal_change()

    def _went_down(self, *, is_lost: bool) -> None:
        if not self.up:
            return
        self.up = False
        self._connection = None
        # Nothing may be sent later behind the back of those who are told NoAnswer now.
        self._out.clear()
        logger.log(
            logging.WARNING if is_lost else logging.DEBUG,
            "the connection to NATS at %s has ended",
            self.options.safe_urls(),
        )
        self.generation += 1
        lost = NoAnswer("the connection was lost; the publish may still land")
        appends, self._appends = self._appends, {}
        requests, self._requests = self._requests, {}
        for subscription in [s for s in self._subscriptions.values() if s.on_lost is not None]:
            del self._subscriptions[subscription.sid]
            assert subscription.on_lost is not None
            subscription.on_lost()
        for _, on_outcome in appends.values():
            self._tell(on_outcome, lost)
        for request in requests.values():
            self._give_up(request, "the connection was lost")
        self._signal_change()

    def _signal_change(self) -> None:
        self._changed.unpark_all()

    def _give_up(self, request: Request, why: str) -> None:
        trio.lowlevel.reschedule(request.task, outcome.Error(NoAnswer(why)))

    def _wake_pump(self) -> None:
        task, self._pump_task = self._pump_task, None
        assert task is not None
        trio.lowlevel.reschedule(task)

    async def _pump(self) -> NoReturn:
        """Write what has gathered since the last turn in one piece."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._pump_task = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if self._congested:
                await trio.sleep(_CONGESTION_CHECK_S)
                self._congested = self._connection is not None and self._connection.write(b"") > _MAX_UNSENT_BYTES
            elif self._out or self._undelivered:
                await trio.lowlevel.checkpoint()
            else:
                self._pump_task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            if self._out and self._connection is not None:
                data = b"".join(self._out)
                self._out.clear()
                self._congested = self._connection.write(data) > _MAX_UNSENT_BYTES
            undelivered, self._undelivered = self._undelivered, []
            for on_outcome, result in undelivered:
                self._tell(on_outcome, result)

    async def _expire(self) -> NoReturn:
        """Turn silence into NoAnswer. All appends wait equally long, so their order in the table is that of expiry."""
        while True:
            if not self._appends and not self._requests:
                self._expiry_wanted = trio.Event()
                await self._expiry_wanted.wait()
            due = min((r.deadline for r in self._requests.values()), default=float("inf"))
            first = next(iter(self._appends.values()), None)
            if first is not None:
                due = min(due, first[0])
            await trio.sleep_until(due)
            if trio.current_time() - due > _LATE_S:
                # This process did not run for a while: the answers may be waiting in the socket.
                await trio.sleep(_LATE_S)
            now = trio.current_time()
            while self._appends:
                token, (deadline, on_outcome) = next(iter(self._appends.items()))
                if deadline > now:
                    break
                del self._appends[token]
                self._tell(on_outcome, NoAnswer("the server did not answer in time; the publish may still land"))
            for token in [t for t, request in self._requests.items() if request.deadline <= now]:
                self._give_up(self._requests.pop(token), "the server did not answer in time")
