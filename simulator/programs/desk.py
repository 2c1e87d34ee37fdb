"""What a program can be told, asked and given to do from outside, and what it remembers of that.

Every message has a tag of its own, so that one that is lost, doubled or exchanged shows. What has reached a run goes
on to the next one when it continues as new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from durablefuture_trio.authoring import workflow
from durablefuture_trio.errors import ApplicationError
from simulator.programs.behaviours import PLAIN, Behaviour, mix, work

SignalName = Literal["nudge", "errand", "parcel"]
UpdateName = Literal["adjust", "late"]
OrderWay = Literal["carried out", "refused", "failing"]


class Order(msgspec.Struct, frozen=True):
    """What an update asks for.

    Attributes:
        tag: of the update.
        way: what becomes of it: ``refused`` by the validator, ``failing`` in the handler.
        behaviour: of the activity that carries it out; None: none does.
    """

    tag: str
    way: OrderWay = "carried out"
    behaviour: Behaviour | None = None


class Seen(msgspec.Struct, frozen=True):
    """What a run has seen, in tags and in their order.

    Attributes:
        run_id: of the run that says so.
        nudges, parcels: signals it has handled, and has received through a channel.
        errands, orders: signals and updates whose handlers it has begun.
        over_at: the event at which its main function ended, or called for the next run; None: it has not.
    """

    run_id: str
    nudges: tuple[str, ...] = ()
    errands: tuple[str, ...] = ()
    parcels: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    over_at: int | None = None


class Carried(msgspec.Struct, frozen=True):
    """What goes on to the next run of a chain: the number that the program passes on, and what was seen."""

    value: int
    seen: Seen


@workflow.signal
def nudge(tag: str) -> None:
    """Handled at once."""


@workflow.signal
def errand(tag: str) -> None:
    """Handled by a task of its own, which calls an activity."""


@workflow.signal
def parcel(tag: str) -> None:
    """Received through a channel, if anybody does."""


@workflow.query
def seen() -> Seen:
    """What the run has seen so far."""
    raise NotImplementedError


@workflow.update
def adjust(order: Order) -> int:
    """Handled from the beginning of a run."""
    raise NotImplementedError


@workflow.update
def late(order: Order) -> int:
    """Handled once a program has come so far."""
    raise NotImplementedError


class RefusedOrder(Exception):
    """What validators raise."""


@adjust.validator
def check(order: Order) -> None:
    """Refuses what is to be refused."""
    if order.way == "refused":
        raise RefusedOrder(f"not {order.tag}")


SIGNALS = {"nudge": nudge, "errand": errand, "parcel": parcel}
UPDATES = {"adjust": adjust, "late": late}


def result_of(order: Order) -> int:
    """What carrying out an order gives."""
    value = mix(order.tag)
    return mix(value, mix("work", value)) if order.behaviour is not None else value


class Desk:
    """The messages of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.nudges: list[str] = []
        self.errands: list[str] = []
        self.parcels: list[str] = []
        self.orders: list[str] = []
        self.over_at: int | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The main function of the run."""
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Nothing that comes from now on needs to be seen."""
        if self.over_at is None:
            self.over_at = workflow.info().history_length

    def go_on_from(self, before: Seen) -> None:
        """Take over what the run before has seen; handlers may have been quicker."""
        self.nudges[:0] = before.nudges
        self.errands[:0] = before.errands
        self.parcels[:0] = before.parcels
        self.orders[:0] = before.orders

    def seen(self) -> Seen:
        """So far."""
        return Seen(
            run_id=self.run_id,
            nudges=tuple(self.nudges),
            errands=tuple(self.errands),
            parcels=tuple(self.parcels),
            orders=tuple(self.orders),
            over_at=self.over_at,
        )

    async def run_errand(self, tag: str) -> None:
        """What the handler of `errand` does."""
        self.errands.append(tag)
        # A handler that fails would fail the run: nothing here may.
        await PLAIN.calls(work)(PLAIN, mix(tag))

    async def carry_out(self, order: Order) -> int:
        """What the handlers of updates do."""
        self.orders.append(order.tag)
        value = mix(order.tag)
        if order.behaviour is not None:
            value = mix(value, await order.behaviour.calls(work)(order.behaviour, value))
        if order.way == "failing":
            raise ApplicationError(f"no {order.tag}", type="FailingOrder")
        return value

    def open(self) -> None:
        """Handle everything but `late` in the run that this is called in."""

        @seen.handler
        def on_seen() -> Seen:
            return self.seen()

        @nudge.handler
        def on_nudge(tag: str) -> None:
            self.nudges.append(tag)

        @errand.handler
        async def on_errand(tag: str) -> None:
            await self.run_errand(tag)

        @adjust.handler
        async def on_adjust(order: Order) -> int:
            return await self.carry_out(order)

    def open_late(self) -> None:
        """Handle `late`."""

        @late.handler
        async def on_late(order: Order) -> int:
            return await self.carry_out(order)

        @late.validator
        def check_late(order: Order) -> None:
            check(order)
