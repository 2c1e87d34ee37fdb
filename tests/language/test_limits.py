"""Every limit says what it is and what to do; what is over it is refused, and nothing else suffers."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio import activity, gather, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.engine import admission, run_drafting, run_owner
from durablefuture_trio.errors import (
    LimitExceededError,
    PayloadError,
    RequestFailedError,
    UpdateFailedError,
    WorkflowFailedError,
)
from durablefuture_trio.history.events import SignalReceived, UpdateAccepted
from durablefuture_trio.sandbox import _calls, _run
from tests._support.language import Play


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
async def large(size: int) -> str:
    return "x" * size


@workflow.signal
def add(number: int) -> None: ...


@pytest.fixture
def short_histories(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real limit is 50,000 events."""
    play.replays_elsewhere = False
    for module in (run_owner, run_drafting):
        monkeypatch.setattr(module, "HISTORY_LIMIT_EVENTS", 60)
    for module in (run_drafting, _run):
        monkeypatch.setattr(module, "SUGGESTED_EVENTS", 54)


@pytest.mark.usefixtures("short_histories")
def test_a_history_that_grows_without_end_is_ended_with_its_limit(play: Play) -> None:
    @workflow
    async def flow() -> None:
        while True:
            await double(1)

    async def scene(client: Client) -> bool:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        return "60" in str(caught.value)

    played = play(scene, flow, double)
    assert played.result is True
    assert played.kinds("w")[-1] == "HistoryLimitExceeded"


@pytest.mark.usefixtures("short_histories")
def test_a_run_is_told_in_time_to_continue_as_new(play: Play) -> None:
    @workflow
    async def flow(done: int) -> int:
        while done < 60:
            await double(done)
            done += 1
            if workflow.info().continue_as_new_suggested:
                workflow.continue_as_new(done)
        return done

    played = play.run(flow, double, args=(0,))
    assert played.result == 60
    assert len(played.runs) >= 3
    assert {run.kinds[-1] for run in played.runs} == {"ContinuedAsNew", "WorkflowCompleted"}


def test_signals_over_the_limit_are_refused_and_those_below_are_kept(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_SIGNALS", 10)

    @workflow
    async def flow() -> int:
        channel = workflow.signal_channel(add)
        await trio.sleep(60)
        return sum([await channel.receive() for _ in range(10)])

    async def scene(client: Client) -> list[object]:
        handle = await client.start(flow, id="w")
        for number in range(10):
            await handle.signal(add, number)
        with pytest.raises(RequestFailedError) as caught:
            await handle.signal(add, 10)
        return ["continue as new" in str(caught.value), await handle.result()]

    played = play(scene, flow)
    assert played.result == [True, 45]
    assert len(played.events("w", SignalReceived)) == 10


def test_open_updates_over_the_limit_are_refused(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_OPEN_UPDATES", 3)

    @workflow
    async def flow() -> int:
        return await workflow.signal_channel(add).receive()

    async def scene(client: Client) -> list[str]:
        handle = await client.start(flow, id="w")
        seen: list[str] = []

        async def ask(number: int) -> None:
            try:
                await handle.update("never", number, update_id=f"{number}")
            except (RequestFailedError, UpdateFailedError) as error:
                seen.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, number)
            await play.recorded("w", UpdateAccepted, 3)
            await play.until(lambda: len(seen) == 2)
            await handle.signal(add, 1)
        return sorted(seen)

    assert play(scene, flow).result == ["RequestFailedError"] * 2 + ["UpdateFailedError"] * 3


@pytest.mark.parametrize("what", ["activities", "children", "requests"])
def test_more_open_calls_than_allowed_raise_where_they_are_made(
    play: Play, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for name in ("MAX_PENDING_ACTIVITIES", "MAX_PENDING_CHILDREN", "MAX_PENDING_REQUESTS"):
        monkeypatch.setattr(_calls, name, 5)
    play.replays_elsewhere = False

    @workflow
    async def child(number: int) -> int:
        return await double(number)

    @workflow
    async def flow(what: str) -> list[int]:
        made: list[object] = []
        try:
            match what:
                case "activities":
                    made = [double.submit(number) for number in range(5)]
                    double.submit(6)
                case "children":
                    made = [child.submit(number) for number in range(5)]
                    child.submit(6)
                case _:
                    async with trio.open_nursery() as nursery:
                        for number in range(6):
                            nursery.start_soon(workflow.handle("w").signal, add, number)
        except* LimitExceededError as group:
            made.append(group.exceptions[0].limit)
        limit = made.pop() if made and isinstance(made[-1], int) else 0
        results = list(await gather(*made)) if what != "requests" else []
        return [*results, limit]

    async def scene(client: Client) -> list[int]:
        return await client.run(flow, what, id="w")

    results = [] if what == "requests" else [0, 2, 4, 6, 8]
    assert play(scene, flow, child, double).result == [*results, 5]


def test_a_result_that_is_too_large_fails_the_run_with_its_size(play: Play) -> None:
    @workflow
    async def flow() -> str:
        return "x" * (3 * 1024 * 1024)

    async def scene(client: Client) -> str:
        with pytest.raises(WorkflowFailedError) as caught:
            await client.run(flow, id="w")
        return str(caught.value.cause)

    assert "bytes" in play(scene, flow, times=1).result


def test_arguments_that_are_too_large_are_refused_before_anything_is_sent(play: Play) -> None:
    @workflow
    async def flow(words: str) -> str:
        return words

    async def scene(client: Client) -> str:
        with pytest.raises(PayloadError) as caught:
            await client.start(flow, "x" * (3 * 1024 * 1024), id="w")
        return str(caught.value)

    played = play(scene, flow, times=1)
    assert "bytes" in played.result
    assert played.runs == []


def test_arguments_of_an_activity_that_are_too_large_raise_in_the_workflow(play: Play) -> None:
    @workflow
    async def flow() -> str:
        @activity
        async def take(words: str) -> None: ...

        try:
            await take("x" * (3 * 1024 * 1024))
        except PayloadError as error:
            return str(error)
        return ""

    assert "bytes" in play.run(flow, times=1).result


def test_many_values_that_fit_one_by_one_are_carried(play: Play) -> None:
    @workflow
    async def flow() -> int:
        futures = [large.submit(400_000) for _ in range(12)]
        return sum(len(words) for words in await gather(*futures))

    assert play.run(flow, large, times=2).result == 12 * 400_000
