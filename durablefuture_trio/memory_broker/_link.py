"""One connection, as one process has it: what is sent, what comes back, and what gets lost when it breaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import trio

from durablefuture_trio.memory_broker._faults import FaultPlan
from durablefuture_trio.memory_broker._schedulers import Callback, Process
from durablefuture_trio.ports.broker import BrokerError, NoAnswer

if TYPE_CHECKING:
    from durablefuture_trio.memory_broker._server import MemoryServer

T = TypeVar("T")


class Attached(Protocol):
    """A reader, as its link knows it."""

    def link_lost(self) -> None:
        """The connection is gone."""
        ...

    def went_silent(self) -> None:
        """Heartbeats are missing."""
        ...


class Exchange(Generic[T]):
    """A question to the server that waits for its answer."""

    __slots__ = ("deadline", "in_flight", "is_append", "on_outcome", "perform")

    def __init__(
        self, perform: Callable[[], T], on_outcome: Callable[[T | BrokerError], None], deadline: float, is_append: bool
    ) -> None:
        self.perform = perform
        self.is_append = is_append
        self.on_outcome = on_outcome
        self.deadline = deadline
        self.in_flight = True


AnyExchange: TypeAlias = Exchange[Any]


class MemoryLink:
    """The state of one connection, and its traffic.

    What is sent earlier arrives earlier, in both directions, unless the fault plan says otherwise. Without latency and
    faults a question is performed within the call that asks it, and answered by the scheduler's next call.
    """

    def __init__(
        self, server: MemoryServer, name: str, faults: FaultPlan | None, answer_timeout: float, process: Process
    ) -> None:
        self.name = name
        self.answer_timeout = answer_timeout
        self.process = process
        self._server = server
        self._scheduler = server.scheduler
        self._own_faults = faults
        self._up = server.running
        self._cut = False
        self._dead = False
        self._generation = 0
        self._change = trio.lowlevel.ParkingLot()
        self._waiting: dict[AnyExchange, None] = {}
        self._readers: dict[Attached, None] = {}
        self._requests_arrive = self._appends_arrive = self._answers_arrive = 0.0
        server.links.append(self)

    # --- the port -----------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self._up

    @property
    def generation(self) -> int:
        return self._generation

    async def changed(self, seen: int) -> int:
        while self._generation == seen:
            await self._change.park()
        await trio.lowlevel.checkpoint()
        return self._generation

    # --- its life -----------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> FaultPlan:
        """The plan in force: its own, or the server's."""
        return self._own_faults if self._own_faults is not None else self._server.faults

    @property
    def dead(self) -> bool:
        """Whether its process is gone."""
        return self._dead

    def drop(self, restore_after: float | None = None) -> None:
        """Lose the connection of this side alone. All who wait get `NoAnswer`; what is on its way to the server may
        arrive nevertheless, as `FaultPlan.lands_after_link_loss` says.

        Args:
            restore_after: seconds until it is back; None: `restore` will say.
        """
        self._cut = True
        self._server.count("link_drop", self._up)
        self._go_down(server_lives=True)
        if restore_after is not None:
            self._scheduler.call_at(self._scheduler.now() + restore_after, self.restore)

    def restore(self) -> None:
        """Connect again after `drop`."""
        self._cut = False
        if self._server.running:
            self._come_up()

    def kill(self) -> None:
        """The process of this side dies: nothing is called back, nobody waits any more. What it has sent is on its way
        as after `drop`."""
        self._dead = True
        self._waiting_as_sent(server_lives=True)
        self._waiting.clear()
        for reader in list(self._readers):
            reader.link_lost()
        self._up = False
        self._server.links.remove(self)

    def server_died(self) -> None:
        """The server's side is gone, with everything it had not performed yet."""
        self._go_down(server_lives=False)

    def server_came_back(self) -> None:
        """The server listens again."""
        if not self._cut:
            self._come_up()

    def went_silent(self) -> None:
        """The server has not sent heartbeats for too long."""
        for reader in list(self._readers):
            reader.went_silent()

    def _go_down(self, *, server_lives: bool) -> None:
        if not self._up:
            return
        self._server.trace(self.name, "link down")
        self._waiting_as_sent(server_lives=server_lives)
        now = self._scheduler.now()
        for exchange in self._waiting:
            self.process.call_at(now, partial(self._answer, exchange, NoAnswer("the link went down")))
        for reader in list(self._readers):
            reader.link_lost()
        self._turn(up=False)

    def _come_up(self) -> None:
        if not self._up:
            self._server.trace(self.name, "link up")
            self._turn(up=True)

    def _turn(self, *, up: bool) -> None:
        self._up = up
        self._generation += 1
        self.process.enter(self._change.unpark_all)

    def _waiting_as_sent(self, *, server_lives: bool) -> None:
        """Decide what becomes of the questions that have not reached the server."""
        for exchange in self._waiting:
            if exchange.in_flight:
                exchange.in_flight = False  # its arrival, if still to come, finds nothing to do
                if server_lives:
                    self._land_after_loss(exchange.perform)

    def _land_after_loss(self, perform: Callable[[], object]) -> None:
        after = self.faults.lands_after_loss(self._server.rng)
        if after is not None:
            self._land_late("lands_after_link_loss", after, perform)

    def _land_late(self, kind: str, after: float, perform: Callable[[], object]) -> None:
        def land() -> None:
            self._server.count(kind)
            _perform_unheard(perform)

        self._server.later(self._scheduler.now() + after, land)

    # --- traffic ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        perform: Callable[[], T],
        on_outcome: Callable[[T | BrokerError], None],
        *,
        is_append: bool = False,
        lands_after: float | None = 0.0,
        answered: bool = True,
        answer_after: float = 0.0,
    ) -> Exchange[T]:
        """Have the server do something and hear its answer; `on_outcome` is never called from within this call.

        Args:
            is_append: it goes in the lane of the publishes, which keep their order among themselves.
            lands_after: extra seconds until the server performs it; None: it never does. What lands after the answer
                timeout leaves the lane: others overtake it, and it lands whatever becomes of the link.
            answered: False: the answer is lost.
            answer_after: extra seconds until the answer.
        """
        now = self._scheduler.now()
        exchange = Exchange(perform, on_outcome, now + self.answer_timeout, is_append)
        self.process.sends()
        if self._dead:
            return exchange
        self._waiting[exchange] = None
        if not self._up:
            exchange.in_flight = False
            self.process.call_at(now, partial(self._answer, exchange, NoAnswer("the link is down")))
            self._land_after_loss(perform)
            return exchange
        if lands_after is None or not answered or lands_after + answer_after >= self.answer_timeout:
            self._expire(exchange)
        if lands_after is None:
            self._server.count("dropped_append")
            exchange.in_flight = False
            return exchange
        hop = self.faults.hop(self._server.rng)
        if lands_after >= self.answer_timeout:
            exchange.in_flight = False
            self._land_late("late_append", hop + lands_after, perform)
            return exchange
        if is_append:
            at = self._appends_arrive = max(now + hop + lands_after, self._appends_arrive)
        else:
            at = self._requests_arrive = max(now + hop, self._requests_arrive)
        if at <= now:
            self._arrive(exchange, answered, answer_after)
        else:
            self._scheduler.call_at(at, partial(self._arrive, exchange, answered, answer_after))
        return exchange

    def post(self, perform: Callable[[], object], *, lands_after: float | None = 0.0) -> None:
        """Have the server do something and expect no answer. With `lands_after` it is on its way for so many extra
        seconds, whatever becomes of the link."""
        self.process.sends()
        if self._dead:
            return
        if lands_after is None:
            self._server.count("lost_ack")
            return
        if not self._up:
            self._land_after_loss(perform)
            return
        now = self._scheduler.now()
        if lands_after:
            self._land_late("late_ack", lands_after, perform)
            return
        at = self._requests_arrive = max(now + self.faults.hop(self._server.rng), self._requests_arrive)
        if at <= now:
            self._arrive_unheard(self._generation, perform)
        else:
            self._scheduler.call_at(at, partial(self._arrive_unheard, self._generation, perform))

    def _arrive_unheard(self, generation: int, perform: Callable[[], object]) -> None:
        if generation != self._generation or self._dead:
            self._land_after_loss(perform)
        elif self._server.paused:
            self._server.hold(partial(_perform_unheard, perform))
        else:
            _perform_unheard(perform)

    def forget(self, exchange: AnyExchange) -> None:
        """Nobody waits for this answer any more; the server may perform it all the same."""
        exchange.on_outcome = _nobody_listens

    def receive(self, call: Callback, *, after: float = 0.0) -> None:
        """The server sends something to this side."""
        if self._dead or not self._up:
            return
        now = self._scheduler.now()
        at = max(now + self.faults.hop(self._server.rng), self._answers_arrive)
        if after:
            at += after
        else:
            self._answers_arrive = at
        if at <= now:
            self.process.enter(call)
        else:
            self.process.call_at(at, partial(self._if_same, self._generation, call))

    def attach(self, reader: Attached) -> None:
        """Tell this reader when the link breaks."""
        self._readers[reader] = None

    def detach(self, reader: Attached) -> None:
        """Tell it no more."""
        self._readers.pop(reader, None)

    def _if_same(self, generation: int, call: Callback) -> None:
        if self._generation == generation and not self._dead:
            call()

    def _arrive(self, exchange: AnyExchange, answered: bool, answer_after: float) -> None:
        if not exchange.in_flight:
            return
        if self._server.paused:
            # Silence: the question waits in the server's socket, its sender gives up in the meantime.
            self._expire(exchange)
            self._server.hold(partial(self._arrive, exchange, answered, answer_after))
            return
        exchange.in_flight = False
        if not self._server.running:
            return
        outcome: Any
        try:
            outcome = exchange.perform()
        except BrokerError as error:
            outcome = error
        if not answered:
            self._server.count("lost_puback" if exchange.is_append else "unanswered_read")
        else:
            # Also without latency the answer is a call of its own: the asker must not be called from within its call.
            now = self._scheduler.now()
            at = max(now + self.faults.hop(self._server.rng), self._answers_arrive)
            if answer_after:
                self._server.count("delayed_answer")
                at += answer_after
            else:
                self._answers_arrive = at
            if at > exchange.deadline:
                self._expire(exchange)
            self.process.call_at(at, partial(self._answer, exchange, outcome))

    def _expire(self, exchange: AnyExchange) -> None:
        self.process.call_at(
            exchange.deadline, partial(self._answer, exchange, NoAnswer("no answer before the deadline"))
        )

    def _answer(self, exchange: AnyExchange, outcome: Any) -> None:
        if exchange in self._waiting:
            del self._waiting[exchange]
            exchange.on_outcome(outcome)


def _nobody_listens(outcome: object) -> None:
    """The answer to what nobody waits for."""


def _perform_unheard(perform: Callable[[], object]) -> None:
    try:
        perform()
    except BrokerError:
        return  # the server's refusal has nobody to go to
