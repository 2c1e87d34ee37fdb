"""What type checkers have to say about starting workflows. Every ignore has to be needed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from durablefuture_trio import connect, workflow
from durablefuture_trio.client import Client, HistoryEvent, WorkflowDescription, WorkflowHandle


@dataclass
class Receipt:
    number: int


@workflow
async def order(customer: str, amount: float, quantity: int = 1) -> Receipt:
    return Receipt(quantity)


@workflow(name="nothing")
async def no_arguments() -> None:
    pass


@workflow
class Subscription:
    async def run(self, customer: str, months: int) -> bytes:
        return b""


class NoWorkflow:
    def walk(self) -> None:
        pass


async def starts(client: Client) -> None:
    assert_type(await client.start(order, "Bob", 2.5, 3, id="order-1"), WorkflowHandle[Receipt])
    assert_type(await client.start(order, "Bob", 2.5), WorkflowHandle[Receipt])
    assert_type(await client.start(no_arguments), WorkflowHandle[None])
    assert_type(await client.start(Subscription, "Bob", 12), WorkflowHandle[bytes])
    assert_type(await client.start("order", "Bob", 1, result_type=Receipt), WorkflowHandle[Receipt])
    assert_type(await client.start("order", "Bob", 1), WorkflowHandle[Any])
    await client.start(
        order,
        "Bob",
        2.5,
        id="order-1",
        id_conflict_policy="terminate_existing",
        id_reuse_policy="failed_only",
        execution_timeout=timedelta(days=1),
        memo={"vip": True},
        request_id="once",
    )


async def runs(client: Client) -> None:
    assert_type(await client.run(order, "Bob", 2.5, 3), Receipt)
    assert_type(await client.run(Subscription, "Bob", 12), bytes)
    assert_type(await client.run("order", "Bob", 1, result_type=Receipt), Receipt)
    assert_type(await client.run("order", "Bob", 1), Any)


async def handles(client: Client) -> None:
    handle = client.handle("order-1", order)
    assert_type(handle, WorkflowHandle[Receipt])
    assert_type(await handle.result(), Receipt)
    assert_type(await handle.history(), list[HistoryEvent])
    assert_type(await handle.describe(), WorkflowDescription)
    assert_type(client.handle("s", Subscription, run_id="r"), WorkflowHandle[bytes])
    assert_type(client.handle("order-1"), WorkflowHandle[Any])
    assert_type(client.handle("order-1", result_type=Receipt), WorkflowHandle[Receipt])
    async for description in client.list(status=("running", "blocked"), workflow="order"):
        assert_type(description, WorkflowDescription)


async def connects() -> None:
    async with connect("nats://127.0.0.1", namespace="shop") as client:
        assert_type(client, Client)
    async with connect(config="supervisor.toml"):
        pass


async def wrong(client: Client) -> None:
    await client.start(order, 1, 2.5)  # type: ignore
    await client.start(order, "Bob", "much")  # type: ignore
    await client.start(order)  # type: ignore
    await client.start(order, "Bob", 2.5, 3, 4)  # type: ignore
    await client.start(Subscription, "Bob", "long")  # type: ignore
    await client.start(NoWorkflow)  # type: ignore
    await client.start(5)  # type: ignore
    await client.start(order, "Bob", 2.5, quantity=3)  # type: ignore
    await client.start(order, "Bob", 2.5, id_conflict_policy="maybe")  # type: ignore
    await client.start(order, "Bob", 2.5, execution_timeout="long")  # type: ignore
    await client.run(order, "Bob", b"much")  # type: ignore
    client.handle(5)  # type: ignore
    client.list(status="gone")  # type: ignore
    connect(url=5)  # type: ignore
