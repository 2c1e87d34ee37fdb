"""What type checkers have to say about signals, queries and updates. Every ignore has to be needed."""

from __future__ import annotations

from typing import Any, assert_type

from durablefuture_trio import RetryPolicy, workflow
from durablefuture_trio.client import Client, WorkflowHandle


@workflow.signal
def approve(approver: str, level: int = 1) -> None:
    pass


@workflow.signal(name="deny")
async def reject(approver: str) -> None:
    pass


@workflow.query
def state() -> dict[str, int]:
    return {}


@workflow.update
async def set_quantity(quantity: int) -> float:
    return 0.0


@workflow.update
def rename(name: str) -> str:
    return name


@workflow
class Order:
    async def run(self, customer: str) -> None:
        pass

    @workflow.signal
    def approve(self, approver: str) -> None:
        pass

    @workflow.query
    def state(self, deep: bool) -> bytes:
        return b""

    @workflow.update
    async def grow(self, by: int) -> int:
        return by


async def messages(handle: WorkflowHandle[int]) -> None:
    await handle.signal(approve, "Ann")
    await handle.signal(approve, "Ann", 2, request_id="once")
    await handle.signal(reject, "Ann")
    await handle.signal(Order.approve, "Ann")
    await handle.signal("anything", 1, "two")
    assert_type(await handle.query(state), dict[str, int])
    assert_type(await handle.query(Order.state, True), bytes)
    assert_type(await handle.query("state"), Any)
    assert_type(await handle.query("state", result_type=int), int)
    assert_type(await handle.update(set_quantity, 2, update_id="once"), float)
    assert_type(await handle.update(rename, "Ann"), str)
    assert_type(await handle.update(Order.grow, 2), int)
    assert_type(await handle.update("grow", 2), Any)
    assert_type(await handle.update("grow", 2, update_id="once", result_type=int), int)
    await handle.cancel("enough")


async def starts(client: Client) -> None:
    handle = await client.start(
        Order, "Bob", start_signal=(approve, ("Ann",)), start_delay=60, retry_policy=RetryPolicy(maximum_attempts=3)
    )
    assert_type(handle, WorkflowHandle[None])


async def wrong(client: Client, handle: WorkflowHandle[int]) -> None:
    await handle.signal(approve)  # type: ignore
    await handle.signal(approve, 5)  # type: ignore
    await handle.signal(Order.approve, 5)  # type: ignore
    await handle.signal(5)  # type: ignore
    await handle.query(state, 1)  # type: ignore
    await handle.update(set_quantity, "two")  # type: ignore
    await handle.update(set_quantity, 2, update_id=5)  # type: ignore
    await client.start(Order, "Bob", start_signal="approve")  # type: ignore
    await client.start(Order, "Bob", retry_policy=3)  # type: ignore
