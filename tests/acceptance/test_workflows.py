"""Workflows as users write them, run by a supervisor that was started as users start it."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from durablefuture_trio import ActivityError, ApplicationError, WorkflowFailedError, WorkflowTimedOutError
from durablefuture_trio.client import Client
from durablefuture_trio.history.events import ActivityFailed, ActivityScheduled, ActivityStarted
from tests._support import acceptance_app as app
from tests._support.acceptance_app import noted
from tests._support.installation import Installation, described, is_alive, until, until_noted


async def test_a_workflow_calls_its_activity_and_returns_a_result(client: Client) -> None:
    assert await client.run(app.greeting, "Bob") == "hello Bob"


async def test_the_command_line_runs_a_workflow_by_name_and_shows_its_history(shared: Installation) -> None:
    done = await shared.command("run", "greeting", "Bob", "--id", "by-command")
    assert (done.code, done.stdout) == (0, '"hello Bob"\n')

    history = await shared.command("history", "by-command", "--json")
    assert [event["event"] for event in history.data] == [
        "WorkflowStarted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "WorkflowCompleted",
    ]
    assert [event["seq"] for event in history.data] == [1, 2, 3, 4, 5]
    times = [event["at"] for event in history.data]
    assert times == sorted(times)


async def test_a_plain_function_runs_in_a_thread(client: Client) -> None:
    assert await client.run(app.greeting_in_thread, "Bob") == "hello Bob from True"


async def test_an_activity_runs_in_the_pool_of_its_task_queue(client: Client) -> None:
    handle = await client.start(app.on_queue, "side")
    other = await client.start(app.on_queue, "default")
    workers = []
    for started in (handle, other):
        assert await started.result() == "hello queue"
        events = [item.event for item in await started.history()]
        workers += [event.worker for event in events if isinstance(event, ActivityStarted)]
    assert len(set(workers)) == 2


async def test_a_class_is_a_workflow_too(client: Client) -> None:
    assert await client.run(app.Conversation, "Bob", "Eve") == ["hello Bob", "hello Eve"]


async def test_values_come_back_as_what_they_were(client: Client) -> None:
    parcel = app.Parcel(
        id=uuid.uuid4(),
        items=[app.Item("widget", Decimal("19.99"), app.Colour.RED)],
        at=datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        after=timedelta(days=3, microseconds=1),
        label=b"\x00\xff",
        tags=frozenset({"fragile", "gift"}),
        weights={"a": (1, 2.5)},
    )
    packed = await client.run(app.packing, parcel)
    assert packed.items.pop() == app.Item("bow", Decimal("0.10"), app.Colour.BLUE)
    assert packed == parcel
    assert isinstance(packed.tags, frozenset)


async def test_of_fifty_calls_at_once_each_runs_once_and_gets_its_own_result(client: Client, journal: Path) -> None:
    assert await client.run(app.fan_out, 50, str(journal)) == [2 * number for number in range(50)]
    assert sorted(noted(journal), key=int) == [str(number) for number in range(50)]


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failure_comes_with_its_type_message_cause_and_traceback(client: Client) -> None:
    with pytest.raises(WorkflowFailedError, match="activity 'charge' failed after 1 attempt: 7 is too much") as caught:
        await client.run(app.failing_by_activity, 7)
    failed = caught.value.cause
    assert isinstance(failed, ActivityError)
    assert (failed.activity, failed.activity_id, failed.attempts, failed.reason) == ("charge", 1, 1, "error")
    error = failed.cause
    assert isinstance(error, ApplicationError)
    assert (error.type, str(error)) == ("InsufficientFundsError", "7 is too much")
    assert 'raise InsufficientFundsError(f"{amount} is too much")' in error.traceback_text
    root = error.__cause__
    assert isinstance(root, ApplicationError)
    assert (root.type, str(root)) == ("KeyError", "'account'")


async def test_a_failure_of_the_workflow_itself_keeps_its_words_and_details(client: Client) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(app.failing_by_itself, "nothing left")
    error = caught.value.cause
    assert isinstance(error, ApplicationError)
    assert (str(error), error.type, error.details) == ("nothing left", "OutOfStock", ("widget", 3))


async def test_a_failure_in_a_nursery_is_recorded_without_the_group_around_it(client: Client) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(app.failing_in_a_nursery)
    assert isinstance(caught.value.cause, ActivityError)


async def test_workflow_code_can_handle_the_failure_of_an_activity(client: Client) -> None:
    assert await client.run(app.handling_a_failure, 3) == "ApplicationError InsufficientFundsError error 1"


async def test_the_command_line_tells_a_failure_by_exit_code_words_and_data(shared: Installation) -> None:
    done = await shared.command("run", "failing_by_activity", "7", "--json")
    assert done.code == 1
    assert done.data["status"] == "failed"
    assert done.data["error"]["type"] == "ActivityError"
    assert done.data["error"]["cause"]["type"] == "InsufficientFundsError"
    assert "7 is too much" in done.stderr
    assert "Traceback" not in done.stderr


# --- retries ----------------------------------------------------------------------------------------------------------


async def test_retries_with_their_backoff_are_in_the_history(client: Client, journal: Path) -> None:
    handle = await client.start(app.with_retries, 3, 0.1, 3.0, str(journal))
    assert await handle.result() == 3

    events = [item.event for item in await handle.history()]
    failures = [event for event in events if isinstance(event, ActivityFailed)]
    scheduled = [event for event in events if isinstance(event, ActivityScheduled)]
    assert [event.attempt for event in failures] == [1, 2]
    assert [event.attempt for event in scheduled] == [1, 2, 3]
    for failure, pause, again in zip(failures, (0.1, 0.3), scheduled[1:], strict=True):
        assert failure.retry_at is not None
        assert failure.retry_at - failure.at == pytest.approx(pause, abs=0.001)
        assert again.at >= failure.retry_at
        assert failure.failure.message == f"attempt {failure.attempt}: the line is busy"
    assert len(noted(journal)) == 3


async def test_a_description_shows_a_pending_retry(client: Client, journal: Path) -> None:
    handle = await client.start(app.with_retries, 1_000, 30.0, 1.0, str(journal))
    await until_noted(journal, 1)
    pending = (
        await described(handle, lambda found: found.pending_activities[0].phase == "backoff")
    ).pending_activities[0]
    assert (pending.activity, pending.attempt, pending.last_failure_reason) == ("flaky", 1, "error")
    assert pending.last_failure == "ConnectionError: attempt 1: the line is busy"
    assert pending.retry_at is not None
    await handle.terminate("seen enough")


async def test_attempts_are_limited_and_the_last_failure_is_told(client: Client, journal: Path) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(app.with_limited_retries, 3, str(journal))
    failed = caught.value.cause
    assert isinstance(failed, ActivityError)
    assert (failed.attempts, str(failed.cause)) == (3, "attempt 3: the line is busy")
    assert len(noted(journal)) == 3


@pytest.mark.parametrize("by", ["name", "flag"])
async def test_a_failure_that_must_not_be_retried_is_not(client: Client, journal: Path, by: str) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(app.non_retryable, str(journal), by)
    assert isinstance(caught.value.cause, ActivityError)
    assert caught.value.cause.attempts == 1
    assert noted(journal) == ["attempt 1"]


async def test_an_activity_that_kills_its_process_is_given_up(client: Client, journal: Path) -> None:
    assert await client.run(app.poisoned, str(journal)) == "crashed after 3"
    assert noted(journal) == ["attempt 1", "attempt 2", "attempt 3"]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.2, 1.3], ids=["short", "parked"])
async def test_a_workflow_sleeps_as_long_as_it_says(client: Client, seconds: float) -> None:
    before = time.time()
    slept = await client.run(app.sleeping, seconds)
    assert time.time() - before >= seconds - 0.01
    assert seconds <= slept < seconds + 5


async def test_a_cancelled_call_reaches_the_activity_and_the_workflow_goes_on(client: Client, journal: Path) -> None:
    handle = await client.start(app.giving_up, 0.3, str(journal))
    assert await handle.result() == "hello again"
    assert noted(journal) == ["started", "cancelled"]
    types = [item.type for item in await handle.history()]
    assert types.index("ActivityCancelRequested") < types.index("ActivityCancelled")


async def test_an_activity_past_its_time_is_cancelled_and_the_workflow_told(client: Client, journal: Path) -> None:
    handle = await client.start(app.timing_out, str(journal), False)
    assert await handle.result() == "timed_out"
    assert noted(journal) == ["started", "cancelled"]
    failure = next(item.event for item in await handle.history() if isinstance(item.event, ActivityFailed))
    assert failure.timeout == "start_to_close"


async def test_a_thread_that_does_not_heed_its_time_is_killed_with_its_process(client: Client, journal: Path) -> None:
    assert await client.run(app.timing_out, str(journal), True) == "timed_out"
    (line,) = noted(journal)
    pid = int(line.removeprefix("process "))
    await until(lambda: not is_alive(pid), "the end of the process that hangs")
    # Another process has taken its place.
    assert await client.run(app.greeting_in_thread, "Bob") == "hello Bob from True"


async def test_a_call_with_all_its_attempts_is_limited(client: Client, journal: Path) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(app.limited_in_all, str(journal))
    assert isinstance(caught.value.cause, ActivityError)
    assert 2 <= len(noted(journal)) <= 6


async def test_a_workflow_past_its_execution_timeout_is_closed_and_its_activity_cancelled(
    client: Client, journal: Path
) -> None:
    handle = await client.start(app.working_for_ever, str(journal), execution_timeout=0.4)
    with pytest.raises(WorkflowTimedOutError):
        await handle.result()
    assert (await handle.describe()).status == "timed_out"
    await until_noted(journal, 2)
    assert noted(journal) == ["started", "cancelled"]


async def test_the_clock_of_a_workflow_is_that_of_its_start(client: Client) -> None:
    handle = await client.start(app.clock)
    shown, seconds = await handle.result()
    started = (await handle.history())[0].at
    assert seconds == pytest.approx(started, abs=1e-6)
    assert shown.timestamp() == pytest.approx(started, abs=1e-5)
