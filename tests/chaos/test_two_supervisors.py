"""Two supervisors of one namespace: one is stopped or killed, the other takes its shards, and nothing is doubled."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import pytest
import trio

from durablefuture_trio.nats_bridge import ConnectOptions
from durablefuture_trio.protocol.lease import LeaseRecord
from tests._support.chaos import Chaos, Connection
from tests._support.chaos_app import chain, chain_result, gated, nap, nap_then_gated, napping_chain
from tests._support.chaos_audit import table
from tests._support.nats_server import NatsServer, nats_server
from tests._support.supervisor_process import SupervisorProcess

pytestmark = pytest.mark.chaos

LEASE_S = 2.0
SLACK_S = 3.0
"""Beyond lease + 1 s, for a busy machine."""


@dataclass
class Pair:
    server: NatsServer
    connection: Connection
    supervisors: list[SupervisorProcess]

    async def owners(self) -> dict[int, SupervisorProcess | None]:
        """Shard -> the supervisor whose lease it is; None for a shard that was given back."""
        subjects = self.connection.subjects
        wanted = [subjects.lease(shard) for shard in range(subjects.shards)]
        found = await self.connection.broker.many(subjects.lease_stream, wanted)
        tokens = {item.subject: msgspec.json.decode(item.body, type=LeaseRecord).token for item in found}
        by_token: dict[str, SupervisorProcess] = {}
        for supervisor in self.supervisors:
            for file in supervisor.config.parent.glob("state/namespaces/*/member-0.token"):
                by_token[file.read_text().strip()] = supervisor
        return {shard: by_token.get(tokens.get(subject, "")) for shard, subject in enumerate(wanted)}

    async def until_owned_by(self, supervisor: SupervisorProcess) -> None:
        """Wait until every shard is this one's."""
        with trio.fail_after(30):
            while set((await self.owners()).values()) != {supervisor}:  # noqa: ASYNC110 - only the server knows
                await trio.sleep(0.02)


@pytest.fixture
async def pair(chaos: Chaos) -> AsyncIterator[Pair]:
    """Two, of which the first runs and owns every shard."""
    async with nats_server() as server:
        supervisors = [chaos.supervisor(name, url=server.url, lease_s=LEASE_S) for name in "ab"]
        await supervisors[0].start()
        async with chaos.connect_to(ConnectOptions(urls=(server.url,))) as connection:
            both = Pair(server, connection, supervisors)
            await both.until_owned_by(supervisors[0])
            yield both
            for supervisor in supervisors:
                supervisor.kill_now()


def ids_of(connection: Connection, count: int) -> list[str]:
    """Workflow ids, as many in each shard."""
    subjects = connection.subjects
    found: dict[int, list[str]] = {shard: [] for shard in range(subjects.shards)}
    number = 0
    while any(len(ids) < count for ids in found.values()):
        workflow_id = f"run-{number}"
        number += 1
        ids = found[subjects.shard_of(workflow_id)]
        if len(ids) < count:
            ids.append(workflow_id)
    return [workflow_id for ids in found.values() for workflow_id in ids]


async def test_the_owner_stopped_taken_over_from_and_awake_again(chaos: Chaos, pair: Pair) -> None:
    """What the first one does when it wakes must not take a wake-up away from the second: that one is killed then, and
    all its work has to be found by the first."""
    connection, (first, second) = pair.connection, pair.supervisors
    gated_ids = ids_of(connection, 2)
    nap_ids = [f"nap-{workflow_id}" for workflow_id in gated_ids[:4]]
    for workflow_id in gated_ids:
        await connection.client.start(gated, 5, "open", id=workflow_id)
    for workflow_id in nap_ids:
        await connection.client.start(nap, 5, 4.0, id=workflow_id)
    for workflow_id in gated_ids:
        await chaos.begun("gated_step", workflow_id=workflow_id)
    await second.start()

    first.pause()
    paused_at = time.monotonic()
    await pair.until_owned_by(second)
    took = time.monotonic() - paused_at
    for workflow_id in gated_ids:
        await chaos.begun("gated_step", attempt=2, workflow_id=workflow_id)

    first.resume()
    await until_logged(first, "is owned by another supervisor now")
    await second.kill()
    chaos.open_gate("open")
    for workflow_id in gated_ids:
        assert await chaos.result(connection, workflow_id, within_s=30) == chain_result(5, 3)
    for workflow_id in nap_ids:
        assert await chaos.result(connection, workflow_id, within_s=30) == chain_result(5, 2)
    await chaos.check(connection, *gated_ids, *nap_ids)
    assert took < LEASE_S + 1.0 + SLACK_S, f"the takeover took {took:.1f} s"


async def test_one_killed_under_load(chaos: Chaos, pair: Pair) -> None:
    connection, (first, second) = pair.connection, pair.supervisors
    await second.start()
    ids = [f"chain-{number}" for number in range(40)]

    async def expect(workflow_id: str) -> None:
        with trio.fail_after(40):
            assert await connection.client.run(chain, 5, 5, 0.1, id=workflow_id) == chain_result(5, 5)

    async with trio.open_nursery() as nursery:
        for workflow_id in ids:
            nursery.start_soon(expect, workflow_id)
        for workflow_id in ids:
            await chaos.begun("blocking_step", workflow_id=workflow_id)
        owners = list((await pair.owners()).values())
        await max(first, second, key=owners.count).kill()
    histories = await chaos.check(connection, *ids)
    lost = [workflow_id for workflow_id, history in histories.items() if "failed (lost)" in table(history)]
    assert lost, "nothing ran on the one that was killed"


async def test_what_a_stopped_owner_acknowledges_late_stays_with_the_new_one(chaos: Chaos, pair: Pair) -> None:
    """The first stops with the acknowledgement of the start in hand. For the second that very message is what keeps
    the run from being forgotten: it has to be there still when the second dies."""
    connection, (first, second) = pair.connection, pair.supervisors
    await first.kill()
    stop = "ack:df.chaos.w.*.start:1"
    await first.start(stop)
    handle = await connection.client.start(nap_then_gated, 5, 1.2, "open", id="run-1")
    await first.reached(stop)
    await second.start()
    await chaos.begun("gated_step")
    first.resume()
    await until_logged(first, "is owned by another supervisor now")
    await second.kill()
    await chaos.begun("gated_step", attempt=2)
    chaos.open_gate("open")
    with trio.fail_after(15):
        assert await handle.result() == chain_result(5, 2)
    histories = await chaos.check(connection, "run-1")
    assert table(histories["run-1"]) == [
        *["started", "scheduled", "started", "completed", "timer fired"],
        *["scheduled", "failed (lost)", "scheduled (attempt 2)", "started", "completed", "workflow completed"],
    ]


@pytest.mark.parametrize(
    "stop",
    ["append:df.chaos.h.*:2", "appended:df.chaos.h.*:2", "dispatch:blocking_step:1", "append:df.chaos.s.*:1"],
)
async def test_what_a_stopped_owner_does_late_changes_nothing(chaos: Chaos, pair: Pair, stop: str) -> None:
    """The first stops with a commit, a dispatch or a timer in hand, and does it when the second is long through."""
    connection, (first, second) = pair.connection, pair.supervisors
    await first.kill()
    await first.start(stop)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_naps, connection, "nap-1")
        await first.reached(stop)
        await second.start()
        await chaos.result(connection, "nap-1", within_s=30)
    first.resume()
    await until_logged(first, "is owned by another supervisor now")
    histories = await chaos.check(connection, "nap-1")
    assert sum(word.startswith("failed") for word in table(histories["nap-1"])) <= 1
    await second.kill()
    await pair.until_owned_by(first)
    with trio.fail_after(15):
        assert await connection.client.run(chain, 7, 2, 0.0, id="nap-1") == chain_result(7, 2)


async def expect_naps(connection: Connection, workflow_id: str) -> None:
    with trio.fail_after(30):
        assert await connection.client.run(napping_chain, 5, 2, 0.0, 1.2, id=workflow_id) == chain_result(5, 2)


async def until_logged(supervisor: SupervisorProcess, words: str) -> None:
    with trio.fail_after(15):
        while words not in supervisor.log:  # noqa: ASYNC110 - the log is a file
            await trio.sleep(0.02)
