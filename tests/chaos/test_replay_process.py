"""SIGKILL to a replay process: its cached runs are replayed on another one, no event is lost or doubled."""

from __future__ import annotations

import os
import signal
import time

import pytest
import trio

from durablefuture_trio.client import Client
from tests._support.chaos import Chaos
from tests._support.chaos_app import chain, chain_result, gated
from tests._support.chaos_audit import table
from tests._support.supervisor_process import SupervisorProcess, until_gone

pytestmark = pytest.mark.chaos

STEPS = 3
UNDISTURBED_CHAIN = ["started", *["scheduled", "started", "completed"] * STEPS, "workflow completed"]


async def kill_replay_process(supervisor: SupervisorProcess) -> None:
    (pid,) = supervisor.replay_pids
    os.kill(pid, signal.SIGKILL)
    await until_gone([pid])


@pytest.mark.parametrize("commit", range(1, STEPS + 2))
async def test_killed_between_activation_and_commit(chaos: Chaos, commit: int) -> None:
    stop = f"append:df.chaos.h.*:{commit}"
    supervisor = chaos.supervisor()
    await supervisor.start(stop)
    async with chaos.connect(supervisor) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(expect_chain, connection.client, "chain-1")
        await supervisor.reached(stop)
        await kill_replay_process(supervisor)
        supervisor.resume()
        await chaos.result(connection, "chain-1")
        histories = await chaos.check(connection, "chain-1")
    assert table(histories["chain-1"]) == UNDISTURBED_CHAIN


async def expect_chain(client: Client, workflow_id: str) -> None:
    assert await client.run(chain, 5, STEPS, 0.0, id=workflow_id) == chain_result(5, STEPS)


async def test_killed_with_an_activation_under_way(chaos: Chaos) -> None:
    stop = "activate:ActivityCompleted:2"
    supervisor = chaos.supervisor()
    await supervisor.start(stop)
    async with chaos.connect(supervisor) as connection:
        handle = await connection.client.start(chain, 5, STEPS, 0.0, id="chain-1")
        await supervisor.reached(stop)
        (pid,) = supervisor.replay_pids
        os.kill(pid, signal.SIGSTOP)
        supervisor.resume()
        # This start is answered without the sandbox, and the question of the other run was sent before it.
        await connection.client.start(chain, 1, 0, 0.0, id="chain-2")
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(10):
            assert await handle.result() == chain_result(5, STEPS)
        assert await chaos.result(connection, "chain-2") == [1]
        histories = await chaos.check(connection, "chain-1", "chain-2")
    assert table(histories["chain-1"]) == UNDISTURBED_CHAIN


async def test_killed_while_idle_with_cached_runs(chaos: Chaos) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start()
    ids = [f"gated-{number}" for number in range(10)]
    async with chaos.connect(supervisor) as connection:
        handles = [await connection.client.start(gated, 5, "open", id=workflow_id) for workflow_id in ids]
        for workflow_id in ids:
            await chaos.begun("gated_step", workflow_id=workflow_id)
        await kill_replay_process(supervisor)
        killed_at = time.monotonic()
        chaos.open_gate("open")
        with trio.fail_after(10):
            for handle in handles:
                assert await handle.result() == chain_result(5, 3)
        took = time.monotonic() - killed_at
        histories = await chaos.check(connection, *ids)
    assert {tuple(table(history)) for history in histories.values()} == {tuple(UNDISTURBED_CHAIN)}
    assert took < 3.0, f"another replay process takes over in less than a second, not {took:.1f}"
