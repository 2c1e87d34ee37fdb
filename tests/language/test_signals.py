"""Signals: acknowledged ones are never lost, each is handled once, in the order they came in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    PayloadError,
    RequestFailedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from durablefuture_trio.history.events import ActivityScheduled, SignalReceived, TimerFired
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@dataclass
class Item:
    name: str
    quantity: int = 1


@workflow.signal
def add(number: int) -> None:
    """A declared signal: a typed reference for clients."""


@workflow.signal
def add_item(item: Item) -> None: ...


@workflow.signal
def close_order() -> None: ...


# --- where a handler stands -------------------------------------------------------------------------------------------


def test_a_closure_handles_a_declared_signal(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        numbers: list[int] = []

        @add.handler
        def on_add(number: int) -> None:
            numbers.append(number)

        await workflow.wait_until(lambda: len(numbers) == 3)
        return numbers

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for number in (3, 1, 2):
            await handle.signal(add, number)
        return await handle.result()

    assert play(scene, flow).result == [3, 1, 2]


def test_a_closure_is_a_handler_by_its_own_name(play: Play) -> None:
    @workflow
    async def flow() -> str:
        approved_by = ""

        @workflow.signal
        def approve(approver: str) -> None:
            nonlocal approved_by
            approved_by = approver

        return await workflow.wait_until(lambda: approved_by)

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.signal("approve", "Ann")
        return await handle.result()

    assert play(scene, flow).result == "Ann"


@workflow
class Order:
    """A workflow class: its methods are handlers."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.is_closed = False

    async def run(self) -> list[Item]:
        await workflow.wait_until(lambda: self.is_closed)
        return self.items

    @workflow.signal
    def put(self, item: Item) -> None:
        self.items.append(item)

    @workflow.signal(name="close")
    async def finish(self) -> None:
        await double(1)
        self.is_closed = True


def test_methods_of_a_workflow_class_are_handlers(play: Play) -> None:
    async def scene(client: Client) -> list[Item]:
        handle = await client.start(Order, id="w")
        await handle.signal(Order.put, Item("tea", 2))
        await handle.signal("put", Item("cup"))
        await handle.signal(Order.finish)
        return await handle.result()

    assert play(scene, Order, double).result == [Item("tea", 2), Item("cup")]


def test_two_runs_of_a_class_do_not_share_their_state(play: Play) -> None:
    async def scene(client: Client) -> list[int]:
        first, second = await client.start(Order, id="a"), await client.start(Order, id="b")
        await first.signal(Order.put, Item("tea"))
        for handle in (first, second):
            await handle.signal(Order.finish)
        return [len(await first.result()), len(await second.result())]

    assert play(scene, Order, double).result == [1, 0]


# --- async handlers are tasks of the run ------------------------------------------------------------------------------


def test_an_async_handler_calls_activities_and_the_run_waits_for_it(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        results: list[int] = []
        came = 0

        @workflow.signal
        async def step(number: int) -> None:
            nonlocal came
            came += 1
            results.append(await double(number))

        await workflow.wait_until(lambda: came == 2)
        return results

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        await handle.signal("step", 5)
        await handle.signal("step", 6)
        await handle.result()
        return []

    played = play(scene, flow, double)
    assert played.kinds("w").count("ActivityCompleted") == 2  # although the function returned before


def test_async_handlers_run_beside_each_other(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> None:
        await gate.passed()

    @workflow
    async def flow() -> list[str]:
        done: list[str] = []

        @workflow.signal
        async def slow() -> None:
            await held()
            done.append("slow")

        @workflow.signal
        async def fast() -> None:
            done.append("fast")

        await workflow.wait_until(lambda: len(done) == 2)
        return done

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        await handle.signal("slow")
        await handle.signal("fast")
        gate.open()
        return await handle.result()

    assert play(scene, flow, held).result == ["fast", "slow"]


def test_an_exception_in_a_signal_handler_fails_the_run(play: Play) -> None:
    @workflow
    async def flow() -> None:
        @workflow.signal
        async def step() -> None:
            await double(1)
            raise ValueError("no such step")

        await trio.sleep_forever()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await handle.signal("step")
        with pytest.raises(WorkflowFailedError) as caught:
            await handle.result()
        return str(caught.value.cause)

    assert play(scene, flow, double).result == "no such step"


def test_a_failing_handler_cancels_what_the_function_waits_for(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> None:
        await gate.passed()

    @workflow
    async def flow() -> None:
        @workflow.signal
        def fail() -> None:
            raise KeyError("key")

        await held()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.began("held")
        await handle.signal("fail")
        with pytest.raises(WorkflowFailedError) as caught:
            await handle.result()
        return str(caught.value.cause)

    played = play(scene, flow, held)
    assert "key" in played.result
    assert "ActivityCancelRequested" in played.kinds("w")


# --- signals without a handler ----------------------------------------------------------------------------------------


def test_signals_that_came_before_their_handler_are_handed_over_in_order(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        numbers: list[int] = []
        await workflow.wait_until(lambda: True)
        await trio.sleep(50)

        @add.handler
        def on_add(number: int) -> None:
            numbers.append(number)

        await trio.sleep(1)
        return numbers

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for number in range(5):
            await handle.signal(add, number)
        return await handle.result()

    assert play(scene, flow).result == [0, 1, 2, 3, 4]


def test_a_later_handler_of_the_same_name_takes_over(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        seen: list[str] = []

        @workflow.signal(name="step")
        def first() -> None:
            seen.append("first")

        await workflow.wait_until(lambda: seen)

        @workflow.signal(name="step")
        def second() -> None:
            seen.append("second")

        await workflow.wait_until(lambda: len(seen) == 2)
        return seen

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        await handle.signal("step")
        await handle.signal("step")
        return await handle.result()

    assert play(scene, flow).result == ["first", "second"]


def test_a_signal_nobody_handles_does_no_harm(play: Play) -> None:
    @workflow
    async def flow() -> int:
        return await double(4)

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w", start_signal=("unheard", (1,)))
        return await handle.result()

    played = play(scene, flow, double)
    assert played.result == 8


def test_a_signal_that_does_not_fit_its_handler_is_left_out_and_the_run_goes_on(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        numbers: list[int] = []

        @add.handler
        def on_add(number: int) -> None:
            numbers.append(number)

        await workflow.wait_until(lambda: 7 in numbers)
        return numbers

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        await handle.signal("add", "seven")
        await handle.signal("add")
        await handle.signal("add", 7)
        return await handle.result()

    played = play(scene, flow)
    assert played.result == [7]
    assert len(played.events("w", SignalReceived)) == 3


# --- channels ---------------------------------------------------------------------------------------------------------


def test_a_channel_begins_with_what_came_before_it_was_opened(play: Play) -> None:
    @workflow
    async def flow() -> list[Item]:
        await trio.sleep(20)
        items: list[Item] = []
        channel = workflow.signal_channel(add_item)
        async for item in channel:
            items.append(item)
            await double(item.quantity)
            if item.name == "last":
                break
        return items

    async def scene(client: Client) -> list[Item]:
        handle = await client.start(flow, id="w")
        await handle.signal(add_item, Item("tea", 3))
        await trio.sleep(30)
        await handle.signal(add_item, Item("cup"))
        await handle.signal(add_item, Item("last"))
        return await handle.result()

    played = play(scene, flow, double)
    assert played.result == [Item("tea", 3), Item("cup"), Item("last")]
    assert played.calls("double") == 3


def test_a_channel_by_name_rebuilds_the_type_it_is_told(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        async with workflow.signal_channel("items", type=Item) as items:
            item = await items.receive()
        async with workflow.signal_channel("words", type=str) as words:
            return [item.name, await words.receive()]

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        await handle.signal("words", "early")
        await handle.signal("items", Item("tea"))
        return await handle.result()

    assert play(scene, flow).result == ["tea", "early"]


def test_a_channel_of_several_arguments_gives_tuples_and_of_none_none(play: Play) -> None:
    @workflow.signal
    def move(x: int, y: int) -> None: ...

    @workflow
    async def flow() -> list[object]:
        moves, ends = workflow.signal_channel(move), workflow.signal_channel(close_order)
        return [list(await moves.receive()), await ends.receive()]

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        await handle.signal(move, 3, 4)
        await handle.signal(close_order)
        return await handle.result()

    assert play(scene, flow).result == [[3, 4], None]


def test_two_receivers_share_a_channel(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        got: list[int] = []

        async def worker() -> None:
            while len(got) < 6:
                with trio.move_on_after(200):
                    got.append(await channel.receive())
                    await double(1)

        channel = workflow.signal_channel(add)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)
            nursery.start_soon(worker)
            await workflow.wait_until(lambda: len(got) == 6)
            nursery.cancel_scope.cancel()
        return sorted(got)

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for number in range(6):
            await handle.signal(add, number)
        return await handle.result()

    assert play(scene, flow, double).result == [0, 1, 2, 3, 4, 5]


def test_a_receiver_that_is_cancelled_takes_no_signal_along(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        channel = workflow.signal_channel(add)
        with trio.move_on_after(5) as scope:
            await channel.receive()
        assert scope.cancelled_caught
        return [await channel.receive(), await channel.receive()]

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        await play.recorded("w", TimerFired)
        await handle.signal(add, 1)
        await handle.signal(add, 2)
        return await handle.result()

    assert play(scene, flow).result == [1, 2]


# --- wait_until -------------------------------------------------------------------------------------------------------


def test_wait_until_holds_when_it_returns_even_if_several_wait_for_the_same(play: Play) -> None:
    @workflow
    async def flow() -> list[str]:
        stock, taken = 0, []

        @add.handler
        def on_add(number: int) -> None:
            nonlocal stock
            stock += number

        async def take(name: str) -> None:
            nonlocal stock
            await workflow.wait_until(lambda: stock >= 2)
            assert stock >= 2
            stock -= 2
            taken.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(take, name)
        return taken

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        for _ in range(6):
            await handle.signal(add, 1)
        return await handle.result()

    assert play(scene, flow).result == ["a", "b", "c"]


def test_wait_until_may_have_a_deadline(play: Play) -> None:
    @workflow
    async def flow() -> bool:
        with trio.move_on_after(15) as scope:
            await workflow.wait_until(lambda: False)
        return scope.cancelled_caught

    assert play.run(flow).result is True


def test_an_activity_result_may_be_what_is_waited_for(play: Play) -> None:
    @workflow
    async def flow() -> int:
        total = 0

        async def count(number: int) -> None:
            nonlocal total
            result = await double(number)  # apart: `+=` would read the total before it waits
            total += result

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(count, number)
            await workflow.wait_until(lambda: total == 12)
        return total

    assert play.run(flow, double).result == 12


# --- the way there ----------------------------------------------------------------------------------------------------


def test_each_of_many_signals_is_recorded_once_and_in_the_order_of_their_acknowledgement(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        numbers: list[int] = []

        @add.handler
        def on_add(number: int) -> None:
            numbers.append(number)

        await workflow.wait_until(lambda: len(numbers) == 40)
        return numbers

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for number in range(40):
            await handle.signal(add, number)
        return await handle.result()

    played = play(scene, flow)
    assert played.result == list(range(40))
    assert len(played.events("w", SignalReceived)) == 40


def test_signals_of_many_senders_at_once_are_all_handled(play: Play) -> None:
    @workflow
    async def flow() -> int:
        total = 0

        @add.handler
        async def on_add(number: int) -> None:
            nonlocal total
            result = await double(number)  # apart: `+=` would read the total before it waits
            total += result

        await workflow.wait_until(lambda: total == 2 * sum(range(20)))
        return total

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w")
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(handle.signal, add, number)
        return await handle.result()

    played = play(scene, flow, double)
    assert played.calls("double") == 20


def test_a_repeated_request_id_is_one_signal(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        channel = workflow.signal_channel(add)
        got = [await channel.receive()]
        with trio.move_on_after(100):
            got.append(await channel.receive())
        return got

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for _ in range(3):
            await handle.signal(add, 9, request_id="the same")
        return await handle.result()

    played = play(scene, flow)
    assert played.result == [9]
    assert len(played.events("w", SignalReceived)) == 1


def test_a_signal_given_with_the_start_is_there_from_the_beginning(play: Play) -> None:
    @workflow
    async def flow() -> int:
        channel = workflow.signal_channel(add)
        return channel.receive_nowait()  # type: ignore[attr-defined]  # it is a memory channel in all but name

    async def scene(client: Client) -> int:
        return await client.run(flow, id="w", start_signal=(add, (11,)))

    assert play(scene, flow).result == 11


def test_a_start_that_uses_an_open_run_gives_it_the_signal(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        channel = workflow.signal_channel(add)
        return [await channel.receive(), await channel.receive()]

    async def scene(client: Client) -> list[int]:
        for number in (1, 2):
            handle = await client.start(flow, id="w", start_signal=(add, (number,)), id_conflict_policy="use_existing")
        return await handle.result()

    played = play(scene, flow)
    assert played.result == [1, 2]


def test_a_signal_that_comes_while_the_run_ends_is_taken_or_refused_but_not_lost(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        numbers: list[int] = []

        @add.handler
        def on_add(number: int) -> None:
            numbers.append(number)

        await double(1)
        return numbers

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        sent: list[int] = []

        async def send(number: int) -> None:
            await trio.sleep(number * 0.001)
            try:
                await handle.signal(add, number)
            except RequestFailedError:
                return
            sent.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(send, number)
        assert sorted(await handle.result()) == sorted(sent)
        return True

    assert play(scene, flow, double).result is True


def test_a_signal_to_a_closed_or_unknown_workflow_is_refused(play: Play) -> None:
    @workflow
    async def flow() -> None: ...

    async def scene(client: Client) -> list[str]:
        seen = []
        await client.run(flow, id="w")
        for workflow_id in ("w", "nobody"):
            try:
                await client.handle(workflow_id).signal(add, 1)
            except (RequestFailedError, WorkflowNotFoundError) as error:
                seen.append(type(error).__name__)
        return seen

    assert play(scene, flow).result == ["RequestFailedError", "WorkflowNotFoundError"]


def test_wrong_arguments_are_refused_before_anything_is_sent(play: Play) -> None:
    @workflow
    async def flow() -> None: ...

    async def scene(client: Client) -> str:
        await client.run(flow, id="w")
        handle = client.handle("w")
        with pytest.raises(TypeError, match="add"):
            await handle.signal(add)  # type: ignore[call-arg]  # what is tested
        with pytest.raises(PayloadError, match="add"):
            await handle.signal(add, "seven")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="signal"):
            await handle.signal(flow)  # type: ignore[arg-type]
        return "refused"

    assert play(scene, flow).result == "refused"


def test_a_signal_wakes_a_run_that_has_slept_through_a_restart(play: Play) -> None:
    @workflow
    async def flow() -> int:
        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> int:
        handle = await client.start(flow, id="w")
        await play.outage(3 * 365 * 86400.0)
        await handle.signal(add, 5)
        return await handle.result()

    played = play(scene, flow, patience_s=1e9)
    assert played.result == 5
    assert played.events("w", ActivityScheduled) == []
