"""Queries: they see what was acknowledged, change nothing, and are answered by closed runs as well."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import QueryFailedError, WorkflowNotFoundError
from durablefuture_trio.history.events import ActivityScheduled
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow.signal
def add(number: int) -> None: ...


@workflow.query
def total(of: str = "all") -> int:
    """A declared query."""
    raise NotImplementedError


@workflow
async def adding() -> int:
    numbers: list[int] = []

    @add.handler
    def on_add(number: int) -> None:
        numbers.append(number)

    @total.handler
    def on_total(of: str = "all") -> int:
        return sum(numbers) if of == "all" else len(numbers)

    await workflow.wait_until(lambda: 0 in numbers)
    return sum(numbers)


def test_a_query_sees_every_acknowledged_signal(play: Play) -> None:
    async def scene(client: Client) -> list[int]:
        handle = await client.start(adding, id="w")
        seen = []
        for number in range(1, 11):
            await handle.signal(add, number)
            seen.append(await handle.query(total))
        await handle.signal(add, 0)
        return seen

    assert play(scene, adding).result == [sum(range(1, n + 1)) for n in range(1, 11)]


def test_a_query_takes_arguments_and_has_defaults(play: Play) -> None:
    async def scene(client: Client) -> list[int]:
        handle = await client.start(adding, id="w")
        await handle.signal(add, 20)
        answers = [await handle.query(total, "count"), await handle.query("total", result_type=int)]
        await handle.signal(add, 0)
        return answers

    assert play(scene, adding).result == [1, 20]


def test_queries_leave_no_trace_in_the_history(play: Play) -> None:
    async def scene(client: Client) -> int:
        handle = await client.start(adding, id="w")
        before = len(await handle.history())
        for _ in range(5):
            await handle.query(total)
        assert len(await handle.history()) == before
        await handle.signal(add, 0)
        await handle.result()
        return before

    assert play(scene, adding).result == 1


def test_a_closed_run_answers_queries(play: Play) -> None:
    async def scene(client: Client) -> list[int]:
        handle = await client.start(adding, id="w", start_signal=(add, (4,)))
        await handle.signal(add, 0)
        await handle.result()
        answers = [await handle.query(total), await handle.query(total, "count")]
        await play.restart()
        return [*answers, await handle.query(total)]

    assert play(scene, adding).result == [4, 2, 4]


def test_a_failed_run_answers_queries(play: Play) -> None:
    @workflow
    async def flow() -> None:
        step = "begun"

        @workflow.query
        def state() -> str:
            return step

        await double(1)
        step = "doubled"
        raise ValueError("no")

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.closed("w")
        return await handle.query("state", result_type=str)

    assert play(scene, flow, double).result == "doubled"


def test_an_unknown_query_names_the_known_ones(play: Play) -> None:
    async def scene(client: Client) -> str:
        handle = await client.start(adding, id="w")
        with pytest.raises(QueryFailedError) as caught:
            await handle.query("sum")
        await handle.signal(add, 0)
        return str(caught.value)

    assert "total" in play(scene, adding).result


def test_a_query_that_raises_gives_its_exception_to_who_asked_and_the_run_goes_on(play: Play) -> None:
    @workflow
    async def flow() -> int:
        @workflow.query
        def state() -> int:
            raise LookupError("nothing yet")

        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        with pytest.raises(QueryFailedError) as caught:
            await handle.query("state")
        await handle.signal(add, 3)
        return [str(caught.value.cause), await handle.result()]

    assert play(scene, flow).result == ["nothing yet", 3]


@pytest.mark.parametrize("how", ["schedules", "awaits", "draws", "asks for a uuid"])
def test_a_query_cannot_change_the_run(play: Play, how: str) -> None:
    @workflow
    async def flow() -> list[float]:
        reads = 0

        @workflow.query
        def state() -> object:
            nonlocal reads
            reads += 1
            match how:
                case "schedules":
                    double.submit(1)
                case "awaits":
                    return double(1)
                case "draws":
                    return workflow.random().random()
                case _:
                    return str(workflow.uuid4())
            return None

        await workflow.signal_channel(add).receive()
        return [workflow.random().random(), reads]

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        failed = 0
        for _ in range(2):
            try:
                await handle.query("state")
            except QueryFailedError:
                failed += 1
        await handle.signal(add, 1)
        drawn, reads = await handle.result()
        return [failed, drawn == 0, reads]

    played = play(scene, flow, double)
    assert played.result == [2, False, 0]
    assert played.events("w", ActivityScheduled) == []


def test_a_query_of_a_class_is_its_method(play: Play) -> None:
    @workflow
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        async def run(self) -> int:
            await workflow.wait_until(lambda: self.count >= 3)
            return self.count

        @workflow.signal
        def step(self) -> None:
            self.count += 1

        @workflow.query
        def current(self) -> int:
            return self.count

    async def scene(client: Client) -> list[int]:
        handle = await client.start(Counter, id="w")
        seen = []
        for _ in range(3):
            seen.append(await handle.query(Counter.current))
            await handle.signal(Counter.step)
        return [*seen, await handle.result()]

    assert play(scene, Counter).result == [0, 1, 2, 3]


def test_a_query_is_answered_while_an_activity_runs(play: Play) -> None:
    gate = play.gate()

    @activity
    async def held() -> None:
        await gate.passed()

    @workflow
    async def flow() -> None:
        step = "before"

        @workflow.query
        def state() -> str:
            return step

        await double(1)
        step = "holding"
        await held()
        step = "after"

    async def scene(client: Client) -> str:
        handle = await client.start(flow, id="w")
        await play.began("held")
        answer = await handle.query("state", result_type=str)
        gate.open()
        await handle.result()
        return answer

    assert play(scene, flow, double, held).result == "holding"


def test_a_query_of_an_unknown_workflow_is_not_found(play: Play) -> None:
    @workflow
    async def flow() -> None: ...

    async def scene(client: Client) -> str:
        await client.run(flow)
        with pytest.raises(WorkflowNotFoundError):
            await client.handle("nobody").query("state")
        return "not found"

    assert play(scene, flow).result == "not found"


def test_a_query_waits_for_a_supervisor(play: Play) -> None:
    async def scene(client: Client) -> int:
        handle = await client.start(adding, id="w", start_signal=(add, (6,)))
        play.stage.dark(True)
        await trio.sleep(1)
        answers = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await handle.query(total))

            nursery.start_soon(ask)
            await trio.sleep(30)
            assert answers == []
            play.stage.dark(False)
        await handle.signal(add, 0)
        await handle.result()
        return answers[0]

    assert play(scene, adding).result == 6


def test_many_queries_at_once_get_their_own_answers(play: Play) -> None:
    @workflow
    async def flow() -> int:
        @workflow.query
        def square(number: int) -> int:
            return number * number

        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> list[int]:
        handle = await client.start(flow, id="w")
        answers = [0] * 30

        async def ask(number: int) -> None:
            answers[number] = await handle.query("square", number)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, number)
        await handle.signal(add, 1)
        await handle.result()
        return answers

    assert play(scene, flow).result == [number * number for number in range(30)]
