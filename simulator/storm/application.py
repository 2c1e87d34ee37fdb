"""The application that runs in a storm: workflows whose outcome is known beforehand, and activities that leave a line
when they begin and then carry out what they were told to, for real: raise, hang, kill their own process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from durablefuture_trio import ActivityError, ApplicationError, RetryPolicy, activity, workflow
from durablefuture_trio.codec import decode_value
from durablefuture_trio.history.events import Event, WorkflowCompleted, WorkflowFailed
from simulator.storm.witnesses import witnessed

if TYPE_CHECKING:
    from simulator.oracle import Outcome  # the children need not load the oracle

QUICK_RETRY = RetryPolicy(initial_interval=0.1, backoff_coefficient=1.5, maximum_interval=1.0)
ATTEMPT_TIMEOUT_S = 2.5
MISDEEDS = ("raise", "crash", "exit", "hang", "block")


@dataclass
class Order:
    """What one call has to do.

    Attributes:
        number: what it returns, times three.
        seconds: how long it works.
        misdeeds: what goes wrong in the first attempts, one after the other (see `MISDEEDS`; ``"fatal"``: an error
            that nobody retries).
    """

    number: int
    seconds: float
    misdeeds: list[str]


def _misdeed(order: Order) -> str:
    """What goes wrong in this attempt; empty: nothing."""
    attempt = activity.info().attempt
    return order.misdeeds[attempt - 1] if attempt <= len(order.misdeeds) else ""


def _misbehave(misdeed: str) -> None:
    match misdeed:
        case "raise":
            raise RuntimeError("told to")
        case "fatal":
            raise ApplicationError("told to", non_retryable=True)
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case _:
            pass


@activity(retry_policy=QUICK_RETRY, start_to_close_timeout=ATTEMPT_TIMEOUT_S)
async def step(order: Order) -> int:
    """Asynchronous work."""
    with witnessed():
        misdeed = _misdeed(order)
        await trio.sleep(order.seconds)
        _misbehave(misdeed)
        if misdeed == "hang":
            await trio.sleep_forever()
        if misdeed == "block":
            time.sleep(ATTEMPT_TIMEOUT_S)  # noqa: ASYNC251 - the whole process hangs, that is the misdeed
        return order.number * 3


@activity(retry_policy=QUICK_RETRY, start_to_close_timeout=ATTEMPT_TIMEOUT_S)
def blocking_step(order: Order) -> int:
    """Work in a thread; one that hangs can only be ended with its process."""
    with witnessed():
        misdeed = _misdeed(order)
        time.sleep(order.seconds)
        _misbehave(misdeed)
        while misdeed in ("hang", "block"):
            time.sleep(0.1)
        return order.number * 3


async def _do(number: int, order: Order) -> int:
    return await (blocking_step if number % 2 else step)(order)


@workflow
async def chain(orders: list[Order], naps: list[float]) -> list[int]:
    """One step after the other, and a nap after each."""
    done: list[int] = []
    for number, order in enumerate(orders):
        done.append(await _do(number, order))
        await trio.sleep(naps[number % len(naps)])
    return done


@workflow
async def fan(orders: list[Order], at_once: int) -> list[int]:
    """Steps beside each other, at most so many."""
    results = [0] * len(orders)
    limit = trio.CapacityLimiter(at_once)

    async def one(number: int, order: Order) -> None:
        async with limit:
            results[number] = await _do(number, order)

    async with trio.open_nursery() as nursery:
        for number, order in enumerate(orders):
            nursery.start_soon(one, number, order)
    return results


@workflow
async def impatient(orders: list[Order], patience: float) -> int:
    """Steps that are cancelled when they take too long, and made good by another one. Returns how many steps were
    done, one way or the other."""
    done = 0
    for number, order in enumerate(orders):
        # An attempt that goes wrong after it was cancelled is not repeated.
        with trio.move_on_after(patience), suppress(ActivityError):
            await _do(number, order)
            done += 1
            continue
        await step(Order(order.number, 0.0, []))
        done += 1
    return done


@workflow
async def fragile(orders: list[Order]) -> list[int]:
    """Fails at the first step that fails for good, after compensating for those before."""
    done: list[int] = []
    try:
        for number, order in enumerate(orders):
            done.append(await _do(number, order))
    except ActivityError as error:
        for value in reversed(done):
            await step(Order(-value, 0.0, []))
        raise ApplicationError(f"gave up at call {error.activity_id}", type="GaveUp") from error
    return done


WORKFLOWS = (chain, fan, impatient, fragile)
DEFINITIONS = (step, blocking_step, *WORKFLOWS)


@dataclass(frozen=True)
class Program:
    """What is started under one workflow id, and how each of its runs has to end."""

    workflow: Any
    arguments: tuple[Any, ...]
    expected: Outcome


def draw_program(rng: Random) -> Program:
    """A program from a seed."""
    kind = rng.choice(("chain", "chain", "fan", "impatient", "fragile"))
    orders = [_draw_order(rng, kind) for _ in range(rng.randint(1, 8 if kind == "fan" else 5))]
    values = [order.number * 3 for order in orders]
    if kind == "chain":
        naps = [rng.choice((0.0, 0.05, 0.6, 1.5, 4.0)) for _ in range(2)]
        return Program(chain, (orders, naps), ("completed", values))
    if kind == "fan":
        return Program(fan, (orders, rng.randint(1, 8)), ("completed", values))
    if kind == "impatient":
        return Program(impatient, (orders, rng.choice((0.05, 0.5, 2.0))), ("completed", len(orders)))
    return Program(fragile, (orders,), _end_of_fragile(orders))


def _draw_order(rng: Random, kind: str) -> Order:
    misdeeds = [rng.choice(MISDEEDS) for _ in range(rng.randint(1, 2))] if rng.random() < 0.15 else []
    if kind == "fragile" and rng.random() < 0.2:
        # An attempt that is lost goes free, and the next one has the next number: so they are all alike.
        misdeeds = ["fatal"] * 30
    return Order(rng.randrange(1000), rng.choice((0.0, 0.05, 0.2, 0.8)), misdeeds)


def _end_of_fragile(orders: Sequence[Order]) -> Outcome:
    for number, order in enumerate(orders, start=1):
        if "fatal" in order.misdeeds:
            return "failed", f"gave up at call {number}"
    return "completed", [order.number * 3 for order in orders]


def outcome_of(event: Event) -> Outcome:
    """A terminal event in the terms of `Program.expected`."""
    match event:
        case WorkflowCompleted(result=result):
            return "completed", decode_value(result, Any)
        case WorkflowFailed(failure=failure):
            return "failed", failure.message
        case _:
            return "any", None
