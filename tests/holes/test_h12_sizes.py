"""What does not fit one message of the server is cut at event boundaries, before it is sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.draft import freeze
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import OwnerLimits
from durablefuture_trio.history.commit import Commit
from durablefuture_trio.history.events import ActivityScheduled, Event, WorkflowStarted
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.ports.broker import BrokerLimits, TooLarge
from durablefuture_trio.protocol.committing import CommitLoop, PendingCommit
from durablefuture_trio.protocol.loading import HistoryReader, load_state
from tests._support.broker_servers import MAX_PAYLOAD_BYTES
from tests._support.holes import result_within, stage
from tests.holes.conftest import Namespace

CALLS = 300


@activity
async def length(text: str) -> int:
    return len(text)


@activity
async def much() -> str:
    return "x" * 100_000


@workflow
async def many_large_calls() -> int:
    lengths: list[int] = []

    async def one() -> None:
        lengths.append(await length("x" * 1000))

    async with trio.open_nursery() as nursery:
        for _ in range(CALLS):
            nursery.start_soon(one)
    return sum(lengths)


@workflow
async def one_large_result() -> str:
    try:
        await much()
    except Exception as error:
        return f"{error.__cause__ or error}"
    return "fits"


class OwnerWithoutLimits(RunOwner):
    """Publishes a commit whatever its size."""

    def __init__(self, *args: Any, limits: OwnerLimits, **others: Any) -> None:
        super().__init__(*args, limits=OwnerLimits(commit_bytes=2**40, payload_bytes=2**40), **others)


async def larger_than_a_message(owner: type[RunOwner], definition: Any) -> tuple[object, int]:
    """On a server that takes messages of 64 KiB. Returns the result, and how many commits it took."""
    async with stage(owner=owner, definitions=(length, much, many_large_calls, one_large_result)) as scene:
        scene.server.limits = BrokerLimits(max_payload_bytes=64 * 1024, server_version="2.15.1")
        await scene.start("A")
        handle = None
        with trio.move_on_after(60):
            handle = await scene.client.start(definition, id="w")
        if handle is None:
            return None, 0
        result = await result_within(handle, 100)
        return result, max(item.n for item in await handle.history())


async def test_h12_an_activation_that_does_not_fit_is_cut_into_several_commits(autojump_clock: MockClock) -> None:
    result, commits = await larger_than_a_message(RunOwner, many_large_calls)
    assert result == 1000 * CALLS
    assert commits > 5


async def test_h12_without_the_cut_the_commit_is_never_taken(autojump_clock: MockClock) -> None:
    assert await larger_than_a_message(OwnerWithoutLimits, many_large_calls) == (None, 0)


async def test_h12_a_result_that_no_message_holds_is_a_recorded_failure(autojump_clock: MockClock) -> None:
    result, _ = await larger_than_a_message(RunOwner, one_large_result)
    assert "a history message holds" in str(result)


async def test_h12_without_the_limit_such_a_result_is_never_recorded(autojump_clock: MockClock) -> None:
    result, commits = await larger_than_a_message(OwnerWithoutLimits, one_large_result)
    assert (result, commits) == (None, 1)


def large_activation() -> list[Event]:
    events: list[Event] = [
        WorkflowStarted(id=1, at=1.0, workflow_id="w", run_id="r", workflow="many", arguments=Payload(b"[]"))
    ]
    arguments = Payload(b'"' + b"x" * (MAX_PAYLOAD_BYTES // 5) + b'"')
    events.extend(
        ActivityScheduled(
            id=call + 1, at=1.0, activity_id=call, name="length", arguments=arguments, options=ActivityOptionsRecord()
        )
        for call in range(1, 21)
    )
    return events


@pytest.mark.parametrize("is_cut", [True, False])
async def test_h12_the_server_takes_the_parts_and_not_the_whole(namespace: Namespace, is_cut: bool) -> None:
    a, b, subjects = namespace
    template = Commit(run_id="r", commit_id="", first_n=1, finished=True, consumed=0, events=())
    limit = a.limits.max_payload_bytes - 4096 if is_cut else 2**40
    names = iter(range(100))
    parts = freeze(template, large_activation(), 1, limit, lambda: str(next(names)))
    if not is_cut:
        assert len(parts) == 1
        [part] = parts
        with pytest.raises(TooLarge):
            await a.append(CommitLoop(a, subjects, print, print)._append(PendingCommit("w", 1, "0", part.body)))
        assert a.link.up, "the server would have cut the connection of all shards"
        return
    with trio.fail_after(20):
        for part in parts:
            await a.append(
                CommitLoop(a, subjects, print, print)._append(PendingCommit("w", part.n, part.commit_id, part.body))
            )
        state = await load_state(HistoryReader(b, subjects), "w")
    assert state is not None
    assert state.tip_n == len(parts) > 4
    assert len(state.activities) == 20
    assert [msgspec.msgpack.decode(part.body)["finished"] for part in parts] == [False] * (len(parts) - 1) + [True]
