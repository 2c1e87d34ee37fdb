"""SIGKILL and SIGSTOP to nats-server: commits of unknown outcome are resolved, none is lost or doubled."""

from __future__ import annotations

import os
import signal
import time

import pytest
import trio

from durablefuture_trio.nats_bridge import ConnectOptions
from tests._support.chaos import Chaos, Connection
from tests._support.chaos_app import chain, chain_result, gated
from tests._support.chaos_audit import table
from tests._support.nats_server import NatsServer, nats_server
from tests._support.supervisor_process import SupervisorProcess, eventually, until_gone
from tests._support.tcp_proxy import tcp_proxy

pytestmark = pytest.mark.chaos

STEPS = 3
UNDISTURBED_CHAIN = ["started", *["scheduled", "started", "completed"] * STEPS, "workflow completed"]
AWAY_S = 8.0


async def kill_server(supervisor: SupervisorProcess) -> None:
    pid = supervisor.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until_gone([pid])


@pytest.mark.parametrize("stop", ["append:df.chaos.h.*:1", "append:df.chaos.h.*:3", "appended:df.chaos.h.*:2"])
async def test_the_embedded_server_killed_at_a_commit(chaos: Chaos, stop: str) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start(stop)
    async with chaos.connect(supervisor) as connection, trio.open_nursery() as nursery:

        async def expect() -> None:
            assert await connection.client.run(chain, 5, STEPS, 0.0, id="chain-1") == chain_result(5, STEPS)

        nursery.start_soon(expect)
        await supervisor.reached(stop)
        await kill_server(supervisor)
        supervisor.resume()
        resumed_at = time.monotonic()
        assert await chaos.result(connection, "chain-1") == chain_result(5, STEPS)
        took = time.monotonic() - resumed_at
        histories = await chaos.check(connection, "chain-1")
    assert table(histories["chain-1"]) == UNDISTURBED_CHAIN
    assert took < 6.0, f"three seconds, and as much again for a busy machine, not {took:.1f}"


@pytest.mark.parametrize("stop", ["provision:*_L:1", "append:df.chaos.n:1", "provision:*_H0:1"])
async def test_the_embedded_server_killed_while_the_supervisor_starts(chaos: Chaos, stop: str) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start(stop)
    await supervisor.reached(stop)
    await kill_server(supervisor)
    supervisor.resume()
    await supervisor.until_ready()
    async with chaos.connect(supervisor) as connection:
        with trio.fail_after(10):
            assert await connection.client.run(chain, 5, STEPS, 0.0, id="chain-1") == chain_result(5, STEPS)
        await chaos.check(connection, "chain-1")


async def test_killed_after_it_stored_a_commit_and_before_anybody_knew(chaos: Chaos) -> None:
    async with (
        nats_server() as server,
        tcp_proxy(lambda: server.port) as proxy,
    ):
        supervisor = chaos.supervisor(url=f"nats://127.0.0.1:{proxy.port}")
        await supervisor.start()
        async with chaos.connect_to(ConnectOptions(urls=(server.url,))) as connection:
            await connection.client.start(gated, 5, "open", id="gated-1")
            await chaos.begun("gated_step")
            proxy.deafen()
            chaos.open_gate("open")
            await until_stored(connection, "gated-1", 3)
            await server.kill()
            proxy.mend()
            await server.start()
            assert await chaos.result(connection, "gated-1") == chain_result(5, 3)
            histories = await chaos.check(connection, "gated-1")
    assert table(histories["gated-1"]) == UNDISTURBED_CHAIN


async def test_killed_before_it_read_a_commit_that_was_sent(chaos: Chaos) -> None:
    async with nats_server() as server:
        supervisor = chaos.supervisor(url=server.url)
        stop = "append:df.chaos.h.*:3"
        await supervisor.start(stop)
        async with chaos.connect_to(ConnectOptions(urls=(server.url,))) as connection:
            await connection.client.start(chain, 5, STEPS, 0.0, id="chain-1")
            await supervisor.reached(stop)
            server.pause()
            supervisor.resume()
            await until_unread(server)
            await server.kill()
            await server.start()
            assert await chaos.result(connection, "chain-1") == chain_result(5, STEPS)
            histories = await chaos.check(connection, "chain-1")
    assert table(histories["chain-1"]) == UNDISTURBED_CHAIN


async def test_away_for_eight_seconds_while_an_activity_runs(chaos: Chaos) -> None:
    async with nats_server() as server:
        supervisor = chaos.supervisor(url=server.url)
        await supervisor.start()
        async with chaos.connect_to(ConnectOptions(urls=(server.url,))) as connection:
            client, subjects = connection.client, connection.subjects
            await client.start(gated, 5, "open", id="gated-1")
            running = await chaos.begun("gated_step")
            server.pause()
            await trio.sleep(AWAY_S)  # the time it is away is what this is about
            server.resume()
            # Another run of the same shard: when it is through, the owner is at work again.
            shard = subjects.shard_of("gated-1")
            other = next(name for name in map(str, range(100)) if subjects.shard_of(name) == shard)
            with trio.fail_after(20):
                assert await client.run(chain, 1, 2, 0.0, id=other) == chain_result(1, 2)
            assert supervisor.worker_pids.count(running.pid) == 1, "the activity was killed"
            chaos.open_gate("open")
            assert await chaos.result(connection, "gated-1") == chain_result(5, 3)
            histories = await chaos.check(connection, "gated-1", other)
    assert table(histories["gated-1"]) == UNDISTURBED_CHAIN
    ended = [item for item in chaos.witnesses if item.what == "end" and item.key == running.key]
    assert [item.pid for item in ended] == [running.pid]


async def until_stored(connection: Connection, workflow_id: str, n: int) -> None:
    """Wait until commit `n` is in the history, which only the server can say, and only when asked."""
    subjects = connection.subjects
    stream = subjects.history_stream(subjects.shard_of(workflow_id))
    with trio.fail_after(10):
        while await connection.broker.last(stream, subjects.history(workflow_id, n)) is None:  # noqa: ASYNC110 - as said
            await trio.sleep(0.01)


async def until_unread(server: NatsServer) -> None:
    """Wait until something has been sent to a server that does not read."""
    port = f":{server.port:04X}"

    def unread() -> bool:
        # Fields of /proc/net/tcp: number, local address, remote address, state, bytes to send : bytes to read.
        with open("/proc/net/tcp") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        return any(row[1].endswith(port) and int(row[4].split(":")[1], 16) > 0 for row in rows)

    await eventually(unread, "bytes wait for the server")
