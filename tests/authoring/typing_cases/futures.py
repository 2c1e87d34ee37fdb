"""What type checkers have to say about durable futures, their combinators, children and other workflows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from durablefuture_trio import (
    ChildWorkflow,
    DurableFuture,
    DurableFutureError,
    ExternalWorkflow,
    RetryPolicy,
    activity,
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)


@activity
async def charge(customer: str, amount: float = 1.0) -> int:
    return len(customer)


@activity
def ship(number: int) -> str:
    return str(number)


@workflow
async def order(customer: str, amount: float) -> int:
    return await charge(customer, amount)


@workflow
class Counter:
    async def run(self, start: int) -> bytes:
        return bytes(start)


async def submit_gives_a_future_of_the_result() -> None:
    future = assert_type(charge.submit("Bob", 5), DurableFuture[int])
    assert_type(await future, int)
    assert_type(future.result(), int)
    assert_type(future.done(), bool)
    assert_type(ship.submit(3), DurableFuture[str])
    assert_type(charge.with_options(priority=1).submit(customer="Bob"), DurableFuture[int])
    anything: DurableFuture[object] = future
    assert anything


async def combinators_keep_the_types() -> None:
    number, text = charge.submit("Bob"), ship.submit(3)
    numbers = [charge.submit("Bob"), charge.submit("Eve")]
    assert_type(await gather(), tuple[()])
    assert_type(await gather(number), tuple[int])
    assert_type(await gather(number, text), tuple[int, str])
    assert_type(await gather(text, number, text), tuple[str, int, str])
    assert_type(
        await gather(number, text, number, text, number, text),
        tuple[int, str, int, str, int, str],
    )
    assert_type(await gather(*numbers), tuple[int, ...])
    assert_type(await outcomes(number, text), tuple[int | DurableFutureError, str | DurableFutureError])
    assert_type(await outcomes(*numbers), tuple[int | DurableFutureError, ...])
    assert_type(await first(*numbers), DurableFuture[int])
    async for future in as_completed(numbers):
        assert_type(future, DurableFuture[int])


async def maps_keep_the_types() -> None:
    assert_type(await durable_map(ship, [1, 2]), list[str])
    assert_type(await durable_map(ship, range(3), concurrency=5), list[str])
    assert_type(await durable_map(ship, [1], tolerate=3), list[str | DurableFutureError])
    assert_type(await durable_map(ship, [1], tolerate=0.5), list[str | DurableFutureError])
    assert_type(await durable_map(ship, [1], tolerate="all"), list[str | DurableFutureError])
    assert_type(await durable_map(charge, ["Bob"]), list[int])


async def children_have_the_types_of_their_functions() -> None:
    assert_type(await order("Bob", 1.0), int)
    assert_type(order.submit("Bob", 1.0), ChildWorkflow[int])
    child = assert_type(workflow.start_child(order, "Bob", 1.0, id="a", parent_close="cancel"), ChildWorkflow[int])
    assert_type(await child, int)
    assert_type(child.id, str)
    assert_type(await child.started(), str)
    assert_type(workflow.start_child(Counter, 3), ChildWorkflow[bytes])
    assert_type(workflow.start_child("name", 3, "x", result_type=str), ChildWorkflow[str])
    assert_type(workflow.start_child("name"), ChildWorkflow[Any])
    workflow.start_child(
        order, "Bob", 1.0, execution_timeout=timedelta(hours=1), retry_policy=RetryPolicy(), memo={"a": 1}
    )
    both = await gather(child, charge.submit("Bob"))
    assert_type(both, tuple[int, int])
    external = assert_type(workflow.handle("id"), ExternalWorkflow)
    await external.cancel("reason")
    assert_type(await external.result(str), str)
    assert_type(await external.result(), Any)
    assert_type(await external, Any)
    assert_type(await external.result(list[int]), list[int])


def patches_are_asked_for_by_id() -> None:
    assert_type(workflow.patched("a"), bool)
    workflow.deprecate_patch("a")


def continuing_ends_the_function(again: bool) -> int:
    if again:
        workflow.continue_as_new("Bob", 2.0, workflow=order)
    workflow.continue_as_new(1)


async def wrong_calls_are_found() -> None:
    charge.submit(5)  # type: ignore[arg-type]
    charge.submit()  # type: ignore[call-arg]
    text: str = await charge.submit("Bob")  # type: ignore[assignment]
    await gather(charge("Bob"), ship.submit(1))  # type: ignore[call-overload]
    await durable_map(ship, ["a"])  # type: ignore[misc]
    await durable_map(ship, [1], tolerate="some")  # type: ignore[call-overload]
    order.submit(5, 1.0)  # type: ignore[arg-type]
    words = await workflow.handle("id").result(str)
    words.bit_length()  # type: ignore[attr-defined]
    workflow.start_child(order, "Bob")  # type: ignore[arg-type]
    workflow.start_child(order, "Bob", 1.0, parent_close="keep")  # type: ignore[call-overload, call-arg]
    workflow.start_child(order, "Bob", 1.0, timeout=3)  # type: ignore[call-overload]
    workflow.start_child(Counter, "x")  # type: ignore[arg-type]
    workflow.continue_as_new(1, workflow=order)  # type: ignore[arg-type]
    assert text
