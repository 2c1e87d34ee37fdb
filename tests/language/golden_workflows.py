"""Workflows whose recorded histories are kept: what runs with them today has to replay what was written long ago.

Do not change what these do. A new feature gets a new workflow, and `python -m tests.language.golden_recorder` records
those that have no history yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import trio

from durablefuture_trio import (
    ActivityError,
    ChildWorkflowError,
    RetryPolicy,
    activity,
    activity_options,
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)


@dataclass
class Charge:
    customer: str
    amount: Decimal
    at: datetime


@activity
async def charge(customer: str, amount: Decimal) -> Charge:
    return Charge(customer, amount, datetime(2024, 2, 29, 12, tzinfo=UTC))


@activity
def double(number: int) -> int:
    return 2 * number


@activity
async def slow(seconds: float) -> float:
    await trio.sleep(seconds)
    return seconds


@activity(retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=1.0))
async def broken(words: str) -> None:
    raise ValueError(words)


@workflow.signal
def add(number: int) -> None: ...


@workflow.update
def multiply(number: int) -> int:
    raise NotImplementedError


@workflow
async def golden_order(customer: str) -> list[str]:
    """Activities, their options, a typed result, a deadline that is kept and one that passes."""
    paid = await charge(customer, Decimal("12.50"))
    with activity_options(start_to_close_timeout=30.0, retry_policy=RetryPolicy(maximum_attempts=3)):
        number = await double(21)
    with trio.move_on_after(60) as kept:
        await slow(0.5)
    with trio.move_on_after(2) as passed:
        await slow(400.0)
    await trio.sleep(1.5)
    return [str(paid.amount), str(number), str(kept.cancelled_caught), str(passed.cancelled_caught)]


@workflow
async def golden_nursery() -> list[object]:
    """Tasks, a lock, a channel, a failure that cancels its neighbours, compensation under a shield."""
    send, receive = trio.open_memory_channel[int](1)
    lock, seen = trio.Lock(), []

    async def produce() -> None:
        async with send:
            for number in range(4):
                async with lock:
                    await send.send(await double(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in receive:
            seen.append(number)  # noqa: PERF401 - as people write it
    try:
        async with trio.open_nursery() as nursery:
            for seconds in (300.0, 200.0, 100.0):
                nursery.start_soon(slow, seconds)
            nursery.start_soon(broken, "no flour")
    except* ActivityError as group:
        seen.append(str(group.exceptions[0].cause))
    with trio.CancelScope(shield=True):
        await double(7)
    return seen


@workflow
async def golden_futures() -> list[object]:
    """Futures and every way to wait for several."""
    both = await gather(double.submit(1), double.submit(2))
    quickest = await first(slow.submit(50.0), slow.submit(0.25))
    found = await outcomes(double.submit(3), broken.submit("one"))
    order = [future.result() async for future in as_completed([slow.submit(0.75), slow.submit(0.5)])]
    mapped = await durable_map(double, range(12), concurrency=5)
    cancelled = slow.submit(90.0)
    await trio.sleep(1)
    cancelled.cancel()
    await cancelled.wait()
    return [*both, await quickest, found[0], isinstance(found[1], ActivityError), *order, sum(mapped)]


@workflow
async def golden_messages() -> int:
    """Signals to a handler and to a channel, updates, a wait for a condition."""
    total = 0

    @add.handler
    async def on_add(number: int) -> None:
        nonlocal total
        doubled = await double(number)
        total += doubled

    @multiply.handler
    def on_multiply(number: int) -> int:
        nonlocal total
        total *= number
        return total

    @multiply.validator
    def check(number: int) -> None:
        if number < 1:
            raise ValueError("no")

    await workflow.wait_until(lambda: total >= 12)
    return total + await workflow.signal_channel("last", type=int).receive()


@workflow
async def golden_child(number: int) -> int:
    return await double(number)


@workflow
async def golden_waiting() -> int:
    return await workflow.signal_channel(add).receive()


@workflow
async def golden_parent() -> list[object]:
    """Children: awaited, signalled, cancelled; a signal to another workflow by its id; one that is left to itself."""
    seen: list[object] = [await golden_child(4)]
    child = workflow.start_child(golden_waiting, id="golden-child")
    await child.started()
    await child.signal(add, 5)
    seen.append(await child)
    cancelled = workflow.start_child(golden_waiting, id="golden-cancelled")
    await cancelled.started()
    cancelled.cancel()
    try:
        await cancelled
    except ChildWorkflowError as error:
        seen.append(error.reason)
    left = workflow.start_child(golden_waiting, id="golden-left", parent_close="abandon")
    await left.started()
    await workflow.handle("golden-left").signal(add, 1)
    return seen


@workflow
async def golden_chain(number: int) -> int:
    """Three runs, a carried signal, patches."""
    if workflow.patched("golden"):
        number += 1
    workflow.deprecate_patch("silver")
    await double(number)
    if number < 3:
        workflow.continue_as_new(number)
    return number + await workflow.signal_channel(add).receive()


@workflow
async def golden_random() -> list[str]:
    """What is drawn decides what is done."""
    drawn = [workflow.random().randrange(1000) for _ in range(3)]
    for number in drawn:
        await double(number)
    return [*(str(number) for number in drawn), str(workflow.uuid4())]


@workflow
async def golden_cancelled() -> None:
    """Cancelled from outside; it compensates and lets the cancel end it."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow, 500.0)
            nursery.start_soon(slow, 400.0)
    finally:
        with trio.CancelScope(shield=True):
            await double(3)


@workflow
async def golden_failed() -> None:
    """Fails with a group."""

    async def fail(words: str) -> None:
        await double(1)
        raise ValueError(words)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broken, "first")
        nursery.start_soon(fail, "second")


DEFINITIONS = (
    charge, double, slow, broken, golden_order, golden_nursery, golden_futures, golden_messages, golden_child,
    golden_waiting, golden_parent, golden_chain, golden_random, golden_cancelled, golden_failed,
)  # fmt: skip
