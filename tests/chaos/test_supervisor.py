"""SIGKILL to the supervisor (its server and children end with it) at named moments; a second start goes on."""

from __future__ import annotations

import time

import pytest
import trio

from tests._support.chaos import Chaos, Connection
from tests._support.chaos_app import chain, chain_result, gated, nap
from tests._support.chaos_audit import table
from tests._support.supervisor_process import SupervisorProcess
from tests._support.witnesses import Witness

pytestmark = pytest.mark.chaos

STEPS = 3


async def kill_at(chaos: Chaos, supervisor: SupervisorProcess, stop: str) -> None:
    """Start a chain, kill the supervisor when it stops there, and start it again."""
    await supervisor.start(stop)
    async with chaos.connect(supervisor) as connection, trio.open_nursery() as nursery:

        async def ask() -> None:
            await connection.client.start(chain, 5, STEPS, 0.0, id="chain-1")

        # The request may be answered before the stop or never: it is in the inbox when the stop is reached.
        nursery.start_soon(ask)
        await supervisor.reached(stop)
        nursery.cancel_scope.cancel()
    await supervisor.kill()
    await supervisor.start()


async def finish(chaos: Chaos, connection: Connection) -> list[str]:
    """Wait for the result; returns the history in words."""
    assert await chaos.result(connection, "chain-1") == chain_result(5, STEPS)
    histories = await chaos.check(connection, "chain-1")
    for supervisor in chaos.supervisors:
        assert "another owner has committed" not in supervisor.logs, "it took a run for a new one that had a history"
    return table(histories["chain-1"])


def begun(witnesses: list[Witness]) -> list[tuple[int, int]]:
    return [(item.activity_id, item.attempt) for item in witnesses if item.what == "begin"]


LOST_ONCE = ["scheduled", "failed (lost)", "scheduled (attempt 2)", "started", "completed"]
UNDISTURBED = ["scheduled", "started", "completed"]


async def test_killed_after_the_commit_and_before_dispatch(chaos: Chaos) -> None:
    supervisor = chaos.supervisor()
    started_at = time.time()
    await kill_at(chaos, supervisor, "dispatch:blocking_step:1")
    async with chaos.connect(supervisor) as connection:
        words = await finish(chaos, connection)
    assert words == ["started", *UNDISTURBED, *LOST_ONCE, *UNDISTURBED, "workflow completed"]
    first, second, third = [item for item in chaos.witnesses if item.what == "begin"]
    assert (first.attempt, second.attempt, third.attempt) == (1, 2, 1), "the attempt that was lost never ran"
    assert time.time() - started_at < 10.0


async def test_killed_after_the_activity_and_before_its_result_was_committed(chaos: Chaos) -> None:
    supervisor = chaos.supervisor()
    await kill_at(chaos, supervisor, "outcome:AttemptCompleted:2")
    async with chaos.connect(supervisor) as connection:
        words = await finish(chaos, connection)
    assert words == ["started", *UNDISTURBED, *LOST_ONCE, *UNDISTURBED, "workflow completed"]
    first, second = [item.activity_id for item in chaos.witnesses if item.what == "begin"][:2]
    assert begun(chaos.witnesses) == [(first, 1), (second, 1), (second, 2), (second + 1, 1)]


@pytest.mark.parametrize(
    "stop",
    [
        "activate:WorkflowStarted:1",
        "activated:*:1",
        "append:df.chaos.h.*:1",
        "appended:df.chaos.h.*:1",
        "tell:dfc.chaos.a.*:1",
        "dispatch:*:1",
        "activate:ActivityCompleted:2",
        "activated:*:3",
        "append:df.chaos.h.*:3",
        "appended:df.chaos.h.*:3",
        "activated:*:4",
        "append:df.chaos.h.*:4",
        "appended:df.chaos.h.*:4",
        "tell:dfc.chaos.c.*:1",
        "append:df.chaos.r.*:1",
        "appended:df.chaos.r.*:1",
        "ack:df.chaos.w.*:1",
    ],
)
async def test_killed_at_any_other_moment(chaos: Chaos, stop: str) -> None:
    supervisor = chaos.supervisor()
    await kill_at(chaos, supervisor, stop)
    async with chaos.connect(supervisor) as connection:
        words = await finish(chaos, connection)
    assert words.count("started") - 1 == words.count("completed") == STEPS
    assert words.count("failed (lost)") <= 1


async def test_killed_while_an_activity_runs(chaos: Chaos) -> None:
    """Long enough for the run to be listed, so that nothing but the activity is left of it in the supervisor."""
    supervisor = chaos.supervisor()
    await supervisor.start()
    async with chaos.connect(supervisor) as connection:
        await connection.client.start(gated, 5, "open", id="gated-1")
        await chaos.begun("gated_step")
        with trio.fail_after(10):
            while not [item async for item in connection.client.list()]:  # noqa: ASYNC110 - only the server knows
                await trio.sleep(0.02)
    await supervisor.kill()
    await supervisor.start()
    await chaos.begun("gated_step", attempt=2)
    chaos.open_gate("open")
    async with chaos.connect(supervisor) as connection:
        assert await chaos.result(connection, "gated-1") == chain_result(5, 3)
        histories = await chaos.check(connection, "gated-1")
    words = table(histories["gated-1"])
    assert words == ["started", *UNDISTURBED, *LOST_ONCE, *UNDISTURBED, "workflow completed"]


async def test_work_goes_on_soon_after_a_restart(chaos: Chaos) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start("dispatch:blocking_step:1")
    async with chaos.connect(supervisor) as connection:
        await connection.client.start(chain, 5, STEPS, 0.0, id="chain-1")
        await supervisor.reached("dispatch:blocking_step:1")
    await supervisor.kill()
    restarted_at = time.time()
    supervisor.spawn()
    again = await chaos.begun("blocking_step", attempt=2)
    assert again.at - restarted_at < 4.0, "two seconds, and as much again for a busy machine"
    await supervisor.until_ready()
    async with chaos.connect(supervisor) as connection:
        await finish(chaos, connection)


@pytest.mark.parametrize("pause_s", [0.0, 4.0], ids=["restarted at once", "restarted after the timer was due"])
async def test_killed_while_parked_on_a_timer(chaos: Chaos, pause_s: float) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start()
    async with chaos.connect(supervisor) as connection:
        await connection.client.start(nap, 5, 3.0, id="nap-1")
        due = await until_parked(connection, "nap-1")
    await supervisor.kill()
    if pause_s:
        await trio.sleep(due + 0.5 - time.time())  # the time that has to pass is what this is about
    await supervisor.start()
    ready_at = time.time()
    async with chaos.connect(supervisor) as connection:
        assert await chaos.result(connection, "nap-1") == chain_result(5, 2)
        took = time.time() - max(due, ready_at)
        histories = await chaos.check(connection, "nap-1")
    assert took < 4.0, f"the timer fired {took:.1f} s late"
    history = histories["nap-1"]
    assert table(history) == ["started", *UNDISTURBED, "timer fired", *UNDISTURBED, "workflow completed"]
    assert history[4].at >= due


async def until_parked(connection: Connection, workflow_id: str) -> float:
    """Wait until nothing of the run is kept by its owner; returns when its timer is due."""
    subjects = connection.subjects
    shard = subjects.shard_of(workflow_id)
    with trio.fail_after(10):
        while True:
            stream = subjects.inbox_stream(shard)
            stored = [item async for item in connection.broker.scan(stream, ">")]
            if len(stored) == 1 and ".s." in stored[0].subject:
                history = await connection.client.handle(workflow_id).history()
                return history[-1].at + 3.0
            await trio.sleep(0.02)
