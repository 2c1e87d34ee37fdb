"""Ids, policies, waiting for results, terminating, looking."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from durablefuture_trio import (
    RequestFailedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
)
from durablefuture_trio.client import Client
from durablefuture_trio.history.events import WorkflowStarted, WorkflowTerminated
from tests._support import acceptance_app as app
from tests._support.acceptance_app import noted
from tests._support.installation import Installation, listed, until_noted

# --- starting ---------------------------------------------------------------------------------------------------------


async def test_a_workflow_starts_by_name_with_a_typed_result(client: Client) -> None:
    assert await client.run("many_steps", 3, result_type=int) == 3


async def test_a_start_repeated_under_its_request_id_starts_nothing_new(client: Client, journal: Path) -> None:
    first = await client.start(app.fan_out, 3, str(journal), id="once", request_id="request-1")
    await first.result()
    again = await client.start(app.fan_out, 3, str(journal), id="once", request_id="request-1")
    assert again.run_id == first.run_id
    assert await client.run(app.fan_out, 3, str(journal), id="once", request_id="request-1") == [0, 2, 4]
    assert len(noted(journal)) == 3


async def test_the_same_start_by_two_commands_at_once_is_one_run(shared: Installation, journal: Path) -> None:
    outputs: list[str] = []

    async def start() -> None:
        done = await shared.command(
            "start", "fan_out", "3", str(journal), "--id", "twice", "--request-id", "request-2", "--json"
        )
        assert done.code == 0, done.stderr
        outputs.append(done.data["run_id"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        nursery.start_soon(start)
    assert outputs[0] == outputs[1]
    await shared.command("result", "twice")
    assert len(noted(journal)) == 3


async def test_an_id_in_use_is_refused_unless_a_policy_says_otherwise(client: Client) -> None:
    first = await client.start(app.waiting_for_ever, id="busy")
    with pytest.raises(WorkflowAlreadyStartedError, match="busy") as caught:
        await client.start(app.waiting_for_ever, id="busy")
    assert caught.value.run_id == first.run_id

    same = await client.start(app.waiting_for_ever, id="busy", id_conflict_policy="use_existing")
    assert same.run_id == first.run_id

    other = await client.start(app.greeting, "Bob", id="busy", id_conflict_policy="terminate_existing")
    assert other.run_id != first.run_id
    assert await other.result() == "hello Bob"
    with pytest.raises(WorkflowTerminatedError, match="replaced by a new run"):
        await first.result()


async def test_the_reuse_policy_says_whether_a_closed_id_may_run_again(client: Client) -> None:
    first = await client.start(app.greeting, "Bob", id="used")
    assert await first.result() == "hello Bob"
    for policy in ("failed_only", "reject"):
        with pytest.raises(WorkflowAlreadyStartedError):
            await client.start(app.greeting, "Eve", id="used", id_reuse_policy=policy)
    assert await client.run(app.greeting, "Eve", id="used") == "hello Eve"

    with pytest.raises(WorkflowFailedError):
        await client.run(app.failing_by_itself, "no", id="failed before")
    assert await client.run(app.greeting, "Eve", id="failed before", id_reuse_policy="failed_only") == "hello Eve"
    with pytest.raises(WorkflowAlreadyStartedError):
        await client.start(app.greeting, "Eve", id="failed before", id_reuse_policy="reject")

    # The older run of the id can still be asked.
    assert await first.result() == "hello Bob"
    assert await client.handle("used", app.greeting).result() == "hello Eve"
    assert await client.handle("used", app.greeting, run_id=first.run_id).result() == "hello Bob"


@pytest.mark.parametrize("workflow_id", ["a b", "ä/…*.>$", "x" * 200, "-", "0"])
async def test_ids_are_what_users_like(client: Client, workflow_id: str) -> None:
    assert await client.run(app.greeting, "Bob", id=workflow_id) == "hello Bob"
    assert (await listed(client, workflow_id, lambda entry: entry.status == "completed")).workflow == "greeting"


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_several_may_wait_for_one_result_from_before_it_is_started(shared: Installation) -> None:
    results: list[str] = []
    async with shared.client() as first, shared.client() as second:

        async def wait(client: Client) -> None:
            while True:
                try:
                    results.append(await client.handle("awaited", app.greeting).result())
                    return
                except WorkflowNotFoundError:
                    await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for client in (first, second, first):
                nursery.start_soon(wait, client)
            await first.start(app.greeting, "Bob", id="awaited")
    assert results == ["hello Bob"] * 3


async def test_a_result_can_be_asked_for_long_after(shared: Installation, client: Client) -> None:
    await client.run(app.greeting, "Bob", id="long ago")
    async with shared.client() as later:
        assert await later.handle("long ago", app.greeting).result() == "hello Bob"
    done = await shared.command("result", "long ago")
    assert (done.code, done.stdout) == (0, '"hello Bob"\n')


async def test_an_unknown_workflow_is_told_to_be_unknown(shared: Installation, client: Client) -> None:
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        await client.handle("nobody").result()
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        await client.handle("nobody").terminate("anyway")
    for command in ("result", "show", "history", "terminate"):
        done = await shared.command(command, "nobody")
        assert done.code == 1
        assert "nobody" in done.stderr
        assert "Traceback" not in done.stderr


# --- ending from outside ----------------------------------------------------------------------------------------------


async def test_a_running_workflow_can_be_terminated_and_its_activity_hears_of_it(client: Client, journal: Path) -> None:
    handle = await client.start(app.working_for_ever, str(journal))
    await until_noted(journal, 1)
    await handle.terminate("not needed any more")
    with pytest.raises(WorkflowTerminatedError, match="not needed any more") as caught:
        await handle.result()
    assert caught.value.reason == "not needed any more"
    await until_noted(journal, 2)
    assert noted(journal) == ["started", "cancelled"]
    with pytest.raises(RequestFailedError, match="closed"):
        await handle.terminate("once more")


async def test_a_termination_repeated_under_its_request_id_is_answered_the_same(client: Client) -> None:
    handle = await client.start(app.waiting_for_ever)
    for _ in range(2):
        await handle.terminate("enough", request_id="terminate-1")
    terminations = [item for item in await handle.history() if isinstance(item.event, WorkflowTerminated)]
    assert len(terminations) == 1


async def test_nothing_that_comes_after_the_end_runs_the_workflow_again(client: Client, journal: Path) -> None:
    handle = await client.start(app.working_for_ever, str(journal))
    await until_noted(journal, 1)
    await handle.terminate("enough")
    await until_noted(journal, 2)
    # The attempt's own end comes to the owner after the run has closed; the next run of the id shows it is past.
    again = await client.start(app.greeting, "Bob", id=handle.id)
    assert await again.result() == "hello Bob"
    older = client.handle(handle.id, run_id=handle.run_id)
    assert [item.type for item in await older.history()][-1] == "WorkflowTerminated"
    assert sum(isinstance(item.event, WorkflowStarted) for item in await older.history()) == 1


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_the_listing_shows_status_times_and_memo(shared: Installation, client: Client) -> None:
    running = await client.start(app.waiting_for_ever, id="listed", memo={"customer": "Bob"})
    entry = await listed(client, "listed", lambda entry: entry.status == "running")
    assert entry.workflow == "waiting_for_ever"
    assert entry.closed_at is None

    done = await shared.command("list", "--status", "running", "--json", "--limit", "0")
    (shown,) = [item for item in done.data if item["workflow_id"] == "listed"]
    assert shown["memo"] == {"customer": "Bob"}
    assert (await shared.command("show", "listed", "--json")).data["memo"] == {"customer": "Bob"}

    await running.terminate("seen")
    entry = await listed(client, "listed", lambda entry: entry.status == "terminated")
    assert entry.closed_at is not None
    assert entry.closed_at >= entry.started_at


async def test_a_table_for_people_says_the_same(shared: Installation, client: Client) -> None:
    await client.run(app.greeting, "Bob", id="in the table")
    await listed(client, "in the table", lambda entry: entry.status == "completed")
    done = await shared.command("list", "--workflow", "greeting", "--limit", "0")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["ID", "WORKFLOW", "STATUS", "STARTED", "(UTC)", "CLOSED", "(UTC)", "NOTE"]
    (row,) = [row for row in rows if row.startswith("in the table ")]
    assert "completed" in row
    history = await shared.command("history", "in the table")
    assert '#1 greet returned "hello Bob"' in history.stdout
    status = await shared.command("status")
    assert re.search(r"^supervisors: \S+ \(seen ", status.stdout, re.MULTILINE)
