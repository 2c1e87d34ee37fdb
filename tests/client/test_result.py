"""Waiting for results: hints, the history behind them, and what the end of a run looks like."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.client import WorkflowHandle, open_client
from durablefuture_trio.codec import encode_value, failure_of
from durablefuture_trio.engine.requests import StartRequest
from durablefuture_trio.errors import (
    ApplicationError,
    PayloadError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.events import Terminal, WorkflowFailed, WorkflowTerminated, WorkflowTimedOut
from durablefuture_trio.memory_broker import ReadFate
from durablefuture_trio.protocol.projection import ProjectionRecord
from tests._support.scripted_owner import completed, started
from tests.client.conftest import World


@dataclass
class Receipt:
    number: int


@workflow
async def order(customer: str) -> Receipt:
    return Receipt(len(customer))


REQUEST = StartRequest(workflow_id="order-1", workflow="order", arguments=encode_value(["Bob"]))


async def begin_run(world: World, run_id: str = "run-1") -> WorkflowHandle[Receipt]:
    await world.owner.commit("order-1", run_id, started(REQUEST, run_id, f"request of {run_id}"))
    return world.client.handle("order-1", order, run_id=run_id)


async def test_the_result_is_rebuilt_as_the_workflow_declares_it(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}))
    assert await handle.result() == Receipt(3)


async def test_run_needs_no_read_when_the_hint_comes(world: World) -> None:
    """The hint alone decides: the close is not even in the history here."""

    async def run() -> None:
        with trio.fail_after(1):
            assert await world.client.run(order, "Bob", id="order-1") == Receipt(7)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        message, _ = await world.owner.start_request()
        await world.owner.begin(message, "run-1")
        world.owner.hint("order-1", "run-1", completed({"number": 7}))


async def test_run_takes_a_hint_that_comes_before_the_answer(world: World) -> None:
    async def run() -> None:
        with trio.fail_after(1):
            assert await world.client.run(order, "Bob", id="order-1") == Receipt(7)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        message, _ = await world.owner.start_request()
        world.owner.hint("order-1", "run-0", completed({"number": 1}))
        world.owner.hint("order-1", "run-1", completed({"number": 7}))
        await trio.sleep(0.1)
        world.owner.answer(message, "applied", "run-1")


async def test_run_repeated_under_its_request_id_gets_the_result_of_the_run_that_closed_long_ago(world: World) -> None:
    async def run() -> None:
        with trio.fail_after(1):
            assert await world.client.run(order, "Bob", id="order-1", request_id="mine") == Receipt(3)

    await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        message, _ = await world.owner.start_request()
        world.owner.answer(message, "applied", "run-1")


async def test_a_hint_without_the_event_sends_the_waiter_to_the_history(world: World) -> None:
    async def wait() -> None:
        with trio.fail_after(1):
            assert await handle.result() == Receipt(3)

    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.5)
        await world.owner.close("order-1", "run-1", completed({"number": 3}), hint=False)
        world.owner.hint("order-1", "run-1", None)


async def test_h20_a_lost_hint_costs_seconds_not_the_result(world: World) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with trio.fail_after(16):
                assert await handle.result() == Receipt(3)

        nursery.start_soon(wait)
        await trio.sleep(4)
        await world.owner.close("order-1", "run-1", completed({"number": 3}), hint=False)


async def test_h20_a_stale_listing_record_does_not_make_the_result_wait(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}), hint=False)
    await world.owner.project(
        ProjectionRecord(
            workflow_id="order-1", run_id="run-1", workflow="order", n=99, status="running", started_at=100.0
        )
    )
    with trio.fail_after(1):
        assert await handle.result() == Receipt(3)


async def test_a_waiter_looks_soon_at_first_and_then_less_and_less_often(world: World) -> None:
    handle = await begin_run(world)
    looked = 0
    original = world.broker.last

    async def counting_last(stream: str, subject: str, *, confirmed: bool = False) -> object:
        nonlocal looked
        looked += subject.endswith("*")
        return await original(stream, subject, confirmed=confirmed)

    world.broker.last = counting_last  # type: ignore[assignment]
    with trio.move_on_after(300):
        await handle.result()
    assert 18 <= looked <= 26


async def test_reads_that_are_not_answered_are_repeated(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}))
    world.faults.next_read(ReadFate(answered=False), count=2)
    assert await handle.result() == Receipt(3)


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        (WorkflowTerminated(id=2, at=101.0, reason="wrong order"), WorkflowTerminatedError, "terminated: wrong order"),
        (WorkflowTimedOut(id=2, at=101.0), WorkflowTimedOutError, "execution deadline"),
    ],
)
async def test_a_run_ended_from_outside_is_an_error_with_its_ids(
    world: World, event: Terminal, error: type[WorkflowTerminatedError], words: str
) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", event)
    with pytest.raises(error, match=words) as caught:
        await handle.result()
    assert (caught.value.workflow_id, caught.value.run_id) == ("order-1", "run-1")


async def test_what_the_workflow_raised_is_the_cause(world: World) -> None:
    handle = await begin_run(world)
    failure = failure_of(ApplicationError("card declined", type="Declined", details=(7,)))
    await world.owner.close("order-1", "run-1", WorkflowFailed(id=2, at=101.0, failure=failure))
    with pytest.raises(WorkflowFailedError, match=r"Declined: card declined") as caught:
        await handle.result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "Declined"
    assert caught.value.__cause__ is cause


async def test_a_result_of_another_type_is_an_error_that_says_where(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": "three"}))
    with pytest.raises(PayloadError, match="number"):
        await handle.result()


async def test_a_handle_by_id_alone_gives_plain_values(world: World) -> None:
    await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}))
    assert await world.client.handle("order-1").result() == {"number": 3}
    assert await world.client.handle("order-1", result_type=Receipt).result() == Receipt(3)


async def test_an_unknown_workflow_is_not_found(world: World) -> None:
    with pytest.raises(WorkflowNotFoundError, match="'nobody' is not known"):
        await world.client.handle("nobody").result()


async def test_an_unknown_run_is_not_found(world: World) -> None:
    await begin_run(world)
    with pytest.raises(WorkflowNotFoundError, match="has no run 'run-7'"):
        await world.client.handle("order-1", run_id="run-7").result()


async def test_a_stale_replica_does_not_make_a_run_unknown(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}))
    world.faults.next_read(ReadFate(stale_by=2))
    assert await handle.result() == Receipt(3)


async def test_without_a_run_id_the_latest_run_is_meant_and_with_one_that_run(world: World) -> None:
    first = await begin_run(world, "run-1")
    await world.owner.close("order-1", "run-1", completed({"number": 1}))
    await begin_run(world, "run-2")
    await world.owner.close("order-1", "run-2", completed({"number": 2}))
    assert await first.result() == Receipt(1)
    assert await world.client.handle("order-1", order).result() == Receipt(2)


async def test_a_run_that_was_closed_by_the_commit_that_began_the_next_one_is_found(world: World) -> None:
    first = await begin_run(world, "run-1")
    terminated = WorkflowTerminated(id=2, at=101.0, reason="replaced")
    await world.owner.commit("order-1", "run-2", terminated, started(REQUEST, "run-2", "second"))
    with pytest.raises(WorkflowTerminatedError, match="replaced"):
        await first.result()
    assert [event.type for event in await first.history()] == ["WorkflowStarted", "WorkflowTerminated"]
    assert (await first.describe()).status == "terminated"
    second = world.client.handle("order-1", order)
    assert [event.type for event in await second.history()] == ["WorkflowStarted"]


async def test_a_commit_that_only_remembers_refusals_does_not_hide_the_close(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", completed({"number": 3}), hint=False)
    await world.owner.commit("order-1", "run-1")
    with trio.fail_after(1):
        assert await handle.result() == Receipt(3)


async def test_waiters_of_one_workflow_share_a_subscription_and_do_not_end_each_others_wait(world: World) -> None:
    handle = await begin_run(world)
    results: list[Receipt] = []
    scopes: list[trio.CancelScope] = []

    async def wait() -> None:
        with trio.fail_after(1), trio.CancelScope() as scope:
            scopes.append(scope)
            results.append(await handle.result())

    listened: list[str] = []
    original = world.broker.listen

    def listen(subject: str) -> object:
        listened.append(subject)
        return original(subject)

    world.broker.listen = listen  # type: ignore[assignment, method-assign]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(0.5)
        scopes[0].cancel()
        await trio.sleep(0.1)
        world.owner.hint("order-1", "run-1", completed({"number": 3}))
    assert listened == [world.subjects.closed_hint("order-1")]
    assert results == [Receipt(3), Receipt(3)]
    assert await leftover_subscriptions(world) == 0


async def leftover_subscriptions(world: World) -> int:
    """How many close hints the client is still subscribed to."""
    await trio.sleep(0.1)
    subject = world.subjects.closed_hint("order-1")
    return sum(subscription.wants(subject) for subscription in world.server._subscriptions)


async def test_a_waiter_that_comes_while_the_last_one_leaves_gets_a_subscription_of_its_own(world: World) -> None:
    handle = await begin_run(world)
    with trio.move_on_after(0.5):
        await handle.result()

    async def tell() -> None:
        await trio.sleep(0.5)
        world.owner.hint("order-1", "run-1", completed({"number": 3}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        with trio.fail_after(1):
            assert await handle.result() == Receipt(3)


async def test_an_unreadable_hint_is_reported_and_harmless(world: World, caplog: pytest.LogCaptureFixture) -> None:
    handle = await begin_run(world)
    async with trio.open_nursery() as nursery:

        async def tell() -> None:
            await trio.sleep(0.5)
            world.owner_broker.tell(world.subjects.closed_hint("order-1"), b"\xff")
            world.owner.hint("order-1", "run-1", completed({"number": 3}))

        nursery.start_soon(tell)
        with trio.fail_after(1):
            assert await handle.result() == Receipt(3)
    assert "close hint cannot be read" in caplog.text


async def test_what_the_body_raises_leaves_the_client_as_it_is(world: World) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_client(world.broker, world.subjects):
            raise LookupError("mine")


async def test_cancelling_the_scope_around_a_client_just_ends_it(world: World) -> None:
    with trio.CancelScope() as scope:
        async with open_client(world.broker, world.subjects):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
