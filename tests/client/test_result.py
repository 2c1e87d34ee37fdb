"""Waiting for results: hints, the history behind them, and what the end of a run looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.client import WorkflowHandle, open_client
from durablefuture_trio.codec import encode_value, failure_of
from durablefuture_trio.engine.requests import StartRequest
from durablefuture_trio.errors import (
    ApplicationError,
    ChildWorkflowError,
    PayloadError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.history.events import (
    ContinuedAsNew,
    HistoryLimitExceeded,
    Terminal,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowStarted,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.memory_broker import ReadFate
from durablefuture_trio.ports.broker import Stored
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
        (WorkflowCancelled(id=2, at=101.0, reason="enough"), WorkflowCancelledError, "cancelled: enough"),
        (WorkflowCancelled(id=2, at=101.0), WorkflowCancelledError, "cancelled: no reason was given"),
        (
            HistoryLimitExceeded(id=2, at=101.0, limit=50),
            WorkflowFailedError,
            "more than 50 events: .* continue as new",
        ),
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


async def test_what_a_cancelled_workflow_was_told_is_an_attribute(world: World) -> None:
    handle = await begin_run(world)
    await world.owner.close("order-1", "run-1", WorkflowCancelled(id=2, at=101.0, reason="enough"))
    with pytest.raises(WorkflowCancelledError) as caught:
        await handle.result()
    assert caught.value.reason == "enough"


async def test_the_failure_of_a_child_comes_back_as_such_with_its_cause(world: World) -> None:
    handle = await begin_run(world)
    declined = ApplicationError("card declined", type="Declined")
    failure = failure_of(ChildWorkflowError("child 'pay-1' failed", workflow_id="pay-1", cause=declined))
    await world.owner.close("order-1", "run-1", WorkflowFailed(id=2, at=101.0, failure=failure))
    with pytest.raises(WorkflowFailedError, match="ChildWorkflowError: child 'pay-1' failed") as caught:
        await handle.result()
    child = caught.value.cause
    assert isinstance(child, ChildWorkflowError)
    assert child.workflow_id == "pay-1"
    assert isinstance(child.cause, ApplicationError)
    assert child.cause.type == "Declined"


# --- runs that go on in others ----------------------------------------------------------------------------------------


def next_run(run_id: str, before: str, first: str = "run-1") -> WorkflowStarted:
    event = started(REQUEST, run_id, "")
    return msgspec.structs.replace(event, first_run_id=first, continued_from=before)


async def continue_run(world: World, before: str, run_id: str, *, hint: bool = True) -> None:
    """One commit closes a run and begins the one that continues it."""
    end = ContinuedAsNew(id=2, at=101.0, next_run_id=run_id, workflow="order", arguments=REQUEST.arguments)
    n = await world.owner.commit("order-1", run_id, end, next_run(run_id, before))
    if hint:
        world.owner.hint("order-1", before, end, n)


async def test_the_result_is_that_of_the_run_that_continues(world: World) -> None:
    handle = await begin_run(world)
    await continue_run(world, "run-1", "run-2")
    await continue_run(world, "run-2", "run-3")
    await world.owner.close("order-1", "run-3", completed({"number": 3}))
    with trio.fail_after(1):
        assert await handle.result() == Receipt(3)
        assert await world.client.handle("order-1", order, run_id="run-2").result() == Receipt(3)
        assert await world.client.handle("order-1", order).result() == Receipt(3)


@pytest.mark.parametrize("hint", [True, False])
async def test_a_waiter_goes_on_with_the_run_that_continues(world: World, hint: bool) -> None:
    handle = await begin_run(world)

    async def wait() -> None:
        with trio.fail_after(12 if hint else 40):
            assert await handle.result() == Receipt(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for number in (1, 2, 3):
            await trio.sleep(3)
            await continue_run(world, f"run-{number}", f"run-{number + 1}", hint=hint)
        await trio.sleep(1)
        await world.owner.close("order-1", "run-4", completed({"number": 3}), hint=hint)


async def test_run_waits_for_the_run_that_continues_by_hints_alone(world: World) -> None:
    async def run() -> None:
        with trio.fail_after(1):
            assert await world.client.run(order, "Bob", id="order-1") == Receipt(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        message, _ = await world.owner.start_request()
        await world.owner.begin(message, "run-1")
        await continue_run(world, "run-1", "run-2")
        world.owner.hint("order-1", "run-2", completed({"number": 3}))


async def test_a_failed_attempt_is_not_the_result_when_the_workflow_is_tried_again(world: World) -> None:
    handle = await begin_run(world)
    failed = WorkflowFailed(id=2, at=101.0, failure=failure_of(ValueError("no")), next_run_id="run-2")
    await world.owner.commit("order-1", "run-2", failed, next_run("run-2", "run-1"))
    failed = WorkflowFailed(id=2, at=101.0, failure=failure_of(ValueError("never")))
    await world.owner.close("order-1", "run-2", failed)
    with pytest.raises(WorkflowFailedError, match="never") as caught, trio.fail_after(1):
        await handle.result()
    assert caught.value.run_id == "run-2"


async def test_a_run_started_anew_under_the_same_id_is_not_waited_for(world: World) -> None:
    handle = await begin_run(world)
    await continue_run(world, "run-1", "run-2")
    await world.owner.close("order-1", "run-2", completed({"number": 2}))
    await begin_run(world, "run-3")
    await world.owner.close("order-1", "run-3", completed({"number": 3}))
    with trio.fail_after(1):
        assert await handle.result() == Receipt(2)


async def test_the_end_of_a_long_chain_is_found_without_reading_all_of_it(world: World) -> None:
    handle = await begin_run(world)
    for number in range(1, 200):
        await continue_run(world, f"run-{number}", f"run-{number + 1}", hint=False)
    await world.owner.close("order-1", "run-200", completed({"number": 3}))
    reads = 0
    original = world.broker.many

    async def counting_many(stream: str, subjects: Sequence[str]) -> list[Stored]:
        nonlocal reads
        reads += 1
        return await original(stream, subjects)

    world.broker.many = counting_many  # type: ignore[method-assign]
    assert await handle.result() == Receipt(3)
    assert reads < 5


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
