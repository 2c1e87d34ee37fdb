"""The workflows of the tests with real processes: supervisors name this module, tests import it."""

from __future__ import annotations

import trio

from durablefuture_trio import activity, workflow


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
async def held(seconds: float) -> float:
    await trio.sleep(seconds)
    return seconds


@workflow.signal
def add(number: int) -> None: ...


@workflow.signal
def finish() -> None: ...


@workflow.query
def current() -> int:
    raise NotImplementedError


@workflow.update
async def multiply(number: int) -> int:
    raise NotImplementedError


@workflow
async def counter() -> int:
    """Takes every kind of message."""
    total, is_finished = 0, False

    @add.handler
    def on_add(number: int) -> None:
        nonlocal total
        total += number

    @current.handler
    def on_current() -> int:
        return total

    @multiply.handler
    async def on_multiply(number: int) -> int:
        nonlocal total
        doubled = await double(number)
        total *= doubled // 2
        return total

    @finish.handler
    def on_finish() -> None:
        nonlocal is_finished
        is_finished = True

    await workflow.wait_until(lambda: is_finished)
    return total


@workflow
async def careful() -> None:
    """Compensates when it is cancelled, and takes its time for it."""
    try:
        await held(600.0)
    finally:
        with trio.CancelScope(shield=True):
            await double(1)
            await trio.sleep(2)
            await double(2)


@workflow
async def parent(children: int) -> int:
    """Children at once, each with a step that takes a while."""
    started = [workflow.start_child(child, number) for number in range(children)]
    return sum([await one for one in started])


@workflow
async def child(number: int) -> int:
    await held(1.5)
    return await double(number)


@workflow
async def chain(left: int, total: int) -> int:
    """A run for each step; the signals that come meanwhile are added by whichever run takes them."""
    channel = workflow.signal_channel(add)
    with trio.move_on_after(0.2):
        while True:
            total += await channel.receive()
    await double(left)
    if left:
        workflow.continue_as_new(left - 1, total)
    with trio.move_on_after(1):
        while True:
            total += await channel.receive()
    return total
