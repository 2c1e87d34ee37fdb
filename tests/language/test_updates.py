"""Updates: carried out once and answered, refused without a trace, never forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    RequestFailedError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowNotFoundError,
)
from durablefuture_trio.history.events import UpdateAccepted, UpdateCompleted
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def finish() -> None: ...


@dataclass
class Line:
    name: str
    quantity: int


@workflow.update
async def set_quantity(name: str, quantity: int) -> Line:
    """A declared update."""
    raise NotImplementedError


@set_quantity.validator
def not_negative(name: str, quantity: int) -> None:
    if quantity < 0:
        raise ValueError(f"{quantity} {name} cannot be ordered")


@workflow
async def order() -> list[Line]:
    lines: list[Line] = []
    is_finished = False

    @set_quantity.handler
    async def on_set(name: str, quantity: int) -> Line:
        line = Line(name, await double(quantity))
        lines.append(line)
        return line

    @finish.handler
    def on_finish() -> None:
        nonlocal is_finished
        is_finished = True

    await workflow.wait_until(lambda: is_finished)
    return lines


def test_an_update_returns_what_its_handler_returns(play: Play) -> None:
    async def scene(client: Client) -> list[Line]:
        handle = await client.start(order, id="w")
        answers = [await handle.update(set_quantity, "tea", 2), await handle.update("set_quantity", "cup", 1)]
        await handle.signal(finish)
        assert len(await handle.result()) == 2
        return [answers[0], Line(**answers[1])]

    played = play(scene, order, double)
    assert played.result == [Line("tea", 4), Line("cup", 2)]


def test_a_validator_refuses_and_leaves_no_trace(play: Play) -> None:
    async def scene(client: Client) -> str:
        handle = await client.start(order, id="w")
        with pytest.raises(UpdateRejectedError) as caught:
            await handle.update(set_quantity, "tea", -1)
        await handle.signal(finish)
        await handle.result()
        return str(caught.value.cause)

    played = play(scene, order, double)
    assert played.result == "-1 tea cannot be ordered"
    assert played.events("w", UpdateAccepted) == []


def test_an_exception_in_an_update_handler_fails_the_update_and_the_run_goes_on(play: Play) -> None:
    @workflow
    async def flow() -> str:
        @workflow.update
        async def fail(number: int) -> None:
            raise LookupError(f"no {await double(number)}")

        await workflow.signal_channel(finish).receive()
        return "went on"

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        with pytest.raises(UpdateFailedError) as caught:
            await handle.update("fail", 4)
        await handle.signal(finish)
        return [str(caught.value.cause), await handle.result()]

    assert play(scene, flow, double).result == ["no 8", "went on"]


def test_a_plain_def_may_handle_an_update(play: Play) -> None:
    @workflow
    async def flow() -> int:
        total = 0

        @workflow.update
        def add(number: int) -> int:
            nonlocal total
            total += number
            return total

        await workflow.signal_channel(finish).receive()
        return total

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        answers = [await handle.update("add", number) for number in (1, 2, 3)]
        await handle.signal(finish)
        return [*answers, await handle.result()]

    assert play(scene, flow).result == [1, 3, 6, 6]


def test_methods_of_a_class_handle_and_validate_updates(play: Play) -> None:
    @workflow
    class Account:
        def __init__(self) -> None:
            self.balance = 10

        async def run(self) -> int:
            await workflow.wait_until(lambda: self.balance == 0)
            return self.balance

        @workflow.update
        async def withdraw(self, amount: int) -> int:
            self.balance -= amount
            await double(amount)
            return self.balance

        @withdraw.validator
        def covered(self, amount: int) -> None:
            if amount > self.balance:
                raise ValueError("not covered")

    async def scene(client: Client) -> list[object]:
        handle = await client.start(Account, id="w")
        first = await handle.update(Account.withdraw, 6)
        with pytest.raises(UpdateRejectedError, match="not covered"):
            await handle.update(Account.withdraw, 5)
        return [first, await handle.update(Account.withdraw, 4), await handle.result()]

    assert play(scene, Account, double).result == [4, 0, 0]


def test_an_update_of_one_id_is_carried_out_once_and_everybody_gets_its_answer(play: Play) -> None:
    async def scene(client: Client) -> list[Line]:
        handle = await client.start(order, id="w")
        answers: list[Line] = []

        async def ask() -> None:
            answers.append(await handle.update(set_quantity, "tea", 2, update_id="one"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
        answers.append(await handle.update(set_quantity, "tea", 2, update_id="one"))
        await play.restart()
        answers.append(await handle.update(set_quantity, "tea", 2, update_id="one"))
        await handle.signal(finish)
        assert len(await handle.result()) == 1
        return answers

    played = play(scene, order, double)
    assert played.result == [Line("tea", 4)] * 6
    assert len(played.events("w", UpdateAccepted)) == 1
    assert len(played.events("w", UpdateCompleted)) == 1


def test_a_failed_update_of_one_id_stays_failed(play: Play) -> None:
    @workflow
    async def flow() -> int:
        times = 0

        @workflow.update
        async def fail() -> None:
            nonlocal times
            times += 1
            raise ValueError(f"time {times}")

        await workflow.signal_channel(finish).receive()
        return times

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        words = []
        for _ in range(3):
            with pytest.raises(UpdateFailedError) as caught:
                await handle.update("fail", update_id="one")
            words.append(str(caught.value.cause))
        await handle.signal(finish)
        return [*words, await handle.result()]

    assert play(scene, flow).result == ["time 1", "time 1", "time 1", 1]


def test_an_update_without_a_handler_waits_for_one(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(30)

        @set_quantity.handler
        async def on_set(name: str, quantity: int) -> Line:
            return Line(name, quantity)

        await workflow.signal_channel(finish).receive()

    async def scene(client: Client) -> Line:
        handle = await client.start(flow, id="w")
        line = await handle.update(set_quantity, "tea", 2)
        await handle.signal(finish)
        await handle.result()
        return line

    assert play(scene, flow).result == Line("tea", 2)


def test_an_update_that_waited_is_validated_when_its_handler_appears(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await trio.sleep(30)

        @workflow.update
        async def late(number: int) -> int:
            return number

        @late.validator
        def check(number: int) -> None:
            if number > 3:
                raise ValueError("too many")

        await workflow.signal_channel(finish).receive()

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        seen: list[object] = []

        async def ask(number: int) -> None:
            try:
                seen.append(await handle.update("late", number))
            except UpdateRejectedError as error:
                seen.append(str(error.cause))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 2)
            nursery.start_soon(ask, 9)
        await handle.signal(finish)
        await handle.result()
        return sorted(seen, key=str)

    assert play(scene, flow).result == [2, "too many"]


def test_a_run_waits_for_running_update_handlers_before_it_ends(play: Play) -> None:
    @workflow
    async def flow() -> str:
        came = False

        @workflow.update
        async def slow() -> int:
            nonlocal came
            came = True
            await trio.sleep(20)
            return await double(3)

        await workflow.wait_until(lambda: came)
        return "returned at once"

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        return [await handle.update("slow"), await handle.result()]

    played = play(scene, flow, double)
    assert played.result == [6, "returned at once"]


def test_an_update_still_waiting_for_a_handler_at_the_end_is_answered(play: Play) -> None:
    @workflow
    async def flow() -> None:
        await workflow.signal_channel(finish).receive()

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        words: list[str] = []

        async def ask() -> None:
            with pytest.raises(UpdateFailedError) as caught:
                await handle.update("never")
            words.append(type(caught.value).__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await play.recorded("w", UpdateAccepted)
            await handle.signal(finish)
        return words[0]

    assert play(scene, flow).result == "UpdateFailedError"


def test_an_update_of_a_run_that_fails_is_answered(play: Play) -> None:
    @workflow
    async def flow() -> None:
        @workflow.update
        async def held() -> None:
            await trio.sleep_forever()

        await workflow.signal_channel(finish).receive()
        raise ValueError("no")

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        words: list[str] = []

        async def ask() -> None:
            with pytest.raises(UpdateFailedError) as caught:
                await handle.update("held")
            words.append(type(caught.value).__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await play.recorded("w", UpdateAccepted)
            await handle.signal(finish)
        return words[0]

    assert play(scene, flow).result == "UpdateFailedError"


def test_an_update_of_a_terminated_run_is_answered(play: Play) -> None:
    async def scene(client: Client) -> str:
        gate_is_late = await client.start(order, id="w")
        words: list[str] = []

        async def ask() -> None:
            with pytest.raises(UpdateFailedError) as caught:
                await gate_is_late.update("unknown")
            words.append(type(caught.value).__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await play.recorded("w", UpdateAccepted)
            await gate_is_late.terminate("enough")
        return words[0]

    assert play(scene, order, double).result == "UpdateFailedError"


def test_updates_run_beside_each_other_and_a_lock_puts_them_in_a_row(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        lock, log = trio.Lock(), []

        @workflow.update
        async def step(number: int) -> int:
            async with lock:
                log.append(number)
                await double(number)
                log.append(-number)
            return len(log)

        await workflow.signal_channel(finish).receive()
        return log

    async def scene(client: Client) -> bool:
        handle = await client.start(flow, id="w")
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(handle.update, "step", number)
        await handle.signal(finish)
        log = await handle.result()
        return len(log) == 10 and all(log[place] == -log[place + 1] for place in range(0, 10, 2))

    assert play(scene, flow, double).result is True


def test_an_update_to_a_closed_or_unknown_workflow_is_refused(play: Play) -> None:
    @workflow
    async def flow() -> None: ...

    async def scene(client: Client) -> list[str]:
        await client.run(flow, id="w")
        seen = []
        for workflow_id in ("w", "nobody"):
            try:
                await client.handle(workflow_id).update("step")
            except (RequestFailedError, WorkflowNotFoundError) as error:
                seen.append(type(error).__name__)
        return seen

    assert play(scene, flow).result == ["RequestFailedError", "WorkflowNotFoundError"]


def test_undecodable_arguments_refuse_the_update(play: Play) -> None:
    async def scene(client: Client) -> str:
        handle = await client.start(order, id="w")
        with pytest.raises(UpdateRejectedError):
            await handle.update("set_quantity", "tea", "many")
        await handle.signal(finish)
        await handle.result()
        return "refused"

    played = play(scene, order, double)
    assert played.events("w", UpdateAccepted) == []


def test_a_validator_that_schedules_something_refuses_the_update(play: Play) -> None:
    @workflow
    async def flow() -> str:
        @workflow.update
        async def step() -> None: ...

        @step.validator
        def check() -> None:
            double.submit(1)

        await workflow.signal_channel(finish).receive()
        return "went on"

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        with pytest.raises(UpdateRejectedError) as caught:
            await handle.update("step")
        await handle.signal(finish)
        return [type(caught.value.cause).__name__, await handle.result()]

    played = play(scene, flow, double)
    assert played.result == ["SandboxViolationError", "went on"]
    assert played.calls("double") == 0


def test_a_refused_update_is_not_carried_out_when_it_would_be_accepted_later(play: Play) -> None:
    @workflow
    async def flow() -> list[int]:
        done: list[int] = []
        is_open = False

        @finish.handler
        def on_finish() -> None:
            nonlocal is_open
            is_open = True

        @workflow.update
        def put(number: int) -> int:
            done.append(number)
            return number

        @put.validator
        def check(number: int) -> None:
            if not is_open:
                raise ValueError("not yet")

        await workflow.wait_until(lambda: done)
        await trio.sleep(30)
        return done

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        for number in (1, 2, 3):
            with pytest.raises(UpdateRejectedError, match="not yet"):
                await handle.update("put", number)
        await handle.signal(finish)
        await play.restart()
        await handle.update("put", 4)
        return await handle.result()

    played = play(scene, flow)
    assert played.result == [4]
    assert len(played.events("w", UpdateAccepted)) == 1
