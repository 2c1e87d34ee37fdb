"""What type checkers have to say about definitions and calls. Every ignore has to be needed."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, assert_type
from uuid import UUID

import trio

from durablefuture_trio import (
    ActivityDefinition,
    ActivityInfo,
    RetryPolicy,
    WorkflowDefinition,
    WorkflowInfo,
    activity,
    activity_options,
    workflow,
)


@dataclass
class Charge:
    id: str


@activity
async def charge(customer: str, amount: float = 1.0) -> Charge:
    return Charge(f"{customer} {amount}")


@activity
def ship(charge: Charge) -> str:
    return charge.id


@activity(start_to_close_timeout=timedelta(seconds=5), retry_policy=RetryPolicy(maximum_attempts=3), name="other")
async def with_options(number: int) -> list[int]:
    return [number]


@activity(task_queue="cpu")
def plain_with_options(number: int) -> bytes:
    return bytes(number)


@workflow
async def order(customer: str) -> Charge:
    return await charge(customer)


@workflow(name="renamed")
async def renamed(number: int) -> int:
    return number


@workflow
class Counter:
    async def run(self, start: int) -> int:
        return start


@workflow(name="renamed-counter")
class RenamedCounter:
    async def run(self, start: int) -> int:
        return start


async def results_have_the_types_of_the_functions() -> None:
    assert_type(await charge("Bob", 5), Charge)
    assert_type(await charge(customer="Bob"), Charge)
    assert_type(await ship(Charge("a")), str)
    assert_type(await with_options(5), list[int])
    assert_type(await plain_with_options(5), bytes)
    assert_type(await charge.with_options(priority=1)("Bob"), Charge)
    coroutine = assert_type(charge("Bob"), Coroutine[Any, Any, Charge])
    await coroutine
    assert_type(await order.fn("Bob"), Charge)
    assert_type(await Counter().run(1), int)
    assert_type(await RenamedCounter().run(1), int)
    assert_type(workflow.now(), datetime)
    assert_type(workflow.info(), WorkflowInfo)
    assert_type(workflow.random(), Random)
    assert_type(workflow.uuid4(), UUID)
    assert_type(activity.info(), ActivityInfo)
    assert_type(activity.info().idempotency_key, str)
    activity.logger.info("x")
    workflow.logger.info("x")


async def definitions_go_where_async_functions_go() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(charge, "Bob", 5.0)
        nursery.start_soon(ship, Charge("a"))


def definitions_have_types_one_can_name() -> None:
    one: ActivityDefinition[[Charge], str] = ship
    two: WorkflowDefinition[[str], Charge] = order
    assert one.name
    assert two.name


async def wrong_calls_are_found() -> None:
    await charge(5)  # type: ignore[arg-type]
    await charge("Bob", "5")  # type: ignore[arg-type]
    await charge()  # type: ignore[call-arg]
    await charge("Bob", colour=1)  # type: ignore[call-arg]
    await ship("a")  # type: ignore[arg-type]
    await with_options("5")  # type: ignore[arg-type]
    await plain_with_options("5")  # type: ignore[arg-type]
    await charge.with_options(priority=1)(5)  # type: ignore[arg-type]
    await order.fn(5)  # type: ignore[arg-type]
    await renamed.fn("5")  # type: ignore[arg-type]
    text: str = await charge("Bob")  # type: ignore[assignment]
    number: int = await ship(Charge(text))  # type: ignore[assignment]
    with_charge: ActivityDefinition[[str], Charge] = ship  # type: ignore[assignment]
    assert number
    assert with_charge
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ship, "a")  # type: ignore[arg-type]


def wrong_options_are_found() -> None:
    charge.with_options(timeout=5)  # type: ignore[call-arg]
    charge.with_options(start_to_close_timeout="5")  # type: ignore[arg-type]
    charge.with_options(isolation="thread")  # type: ignore[arg-type]
    activity(retry_policy=3)  # type: ignore[call-overload]
    activity(colour="red")  # type: ignore[call-overload]
    with activity_options(heartbeat_timeout="5"):  # type: ignore[arg-type]
        pass


def wrong_definitions_are_found() -> None:
    @workflow  # type: ignore[arg-type]
    def plain() -> int:
        return 1

    @workflow
    class WithoutRun:  # type: ignore[type-var]
        pass

    @workflow
    class WithPlainRun:  # type: ignore[type-var]
        def run(self) -> int:
            return 1
