"""A publish without an answer: the identical bytes again until the number is occupied, then the commit ids decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.authoring import workflow
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.memory_broker import AppendFate
from durablefuture_trio.ports.broker import AppendOutcome, Conflict, NoAnswer, Stored
from durablefuture_trio.protocol.committing import CommitLoop, PendingCommit
from durablefuture_trio.supervisor._shard import Shard
from tests._support.broker_servers import ServerUnderTest
from tests._support.holes import DEFINITIONS, event_names, result_within, stage, takes
from tests.holes.conftest import Namespace


@workflow
async def two_beside_each_other() -> str:
    async def one(seconds: float) -> None:
        await takes(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 1.0)
        nursery.start_soon(one, 2.0)
    return "both"


class RebuildingOwner(RunOwner):
    """Decides a number it has published already once more, with what has come in the meantime."""

    def rebuild(self, now: float) -> None:
        assert self._flight is not None
        self._draft, self._flight = self._flight.draft, None
        self._advance(now)


class ReadingOnce(CommitLoop):
    """Reads the number once after silence, takes absence for proof, and an own commit there for its own commit."""

    def publish_or_rebuild(
        self, commit: PendingCommit, on_result: Callable[[bool], None], rebuild: Callable[[], None]
    ) -> None:
        async def look() -> None:
            if await self._standing(commit) is None:
                rebuild()
            else:
                on_result(True)

        def answered(outcome: AppendOutcome) -> None:
            if isinstance(outcome, int):
                on_result(True)
            elif isinstance(outcome, Conflict | NoAnswer):
                self._spawn(look)

        self._broker.append_soon(self._append(commit), answered)


class ShardThatRebuilds(Shard):
    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, owner_type=RebuildingOwner, **others)
        self._loop = ReadingOnce(self._broker, self._subjects, self._spawn, self._report)

    def _do_publish(self, owner: RunOwner, output: out.Publish) -> None:
        assert isinstance(owner, RebuildingOwner)
        commit = PendingCommit(owner.workflow_id, output.n, output.commit_id, output.body)
        self._loop.publish_or_rebuild(
            commit,
            lambda is_ours: self._resolved(owner, is_ours),
            lambda: self._later(owner, lambda: owner.rebuild(self._clock.now())),
        )


async def lands_after_it_was_given_up(shard: type[Shard]) -> tuple[object, list[str], int]:
    """The commit of the first outcome lands after 8 s, its author gives up after 5; the second outcome comes meanwhile.
    The next publish is on its way long enough for the first one to land before it."""
    async with stage(shard=shard, definitions=(*DEFINITIONS, two_beside_each_other)) as scene:
        await scene.start("A")
        handle = await scene.client.start(two_beside_each_other, id="w")
        scene.faults.next_append(AppendFate(lands_after=8, answered=False), "df.test.h.0.*.2")
        scene.faults.next_append(AppendFate(lands_after=4), "df.test.h.0.*.2")
        result = await result_within(handle, 60)
        await trio.sleep(10)
        return result, await event_names(handle), scene.waiting()


async def test_h04_what_came_after_an_unanswered_publish_goes_into_the_next_number(autojump_clock: MockClock) -> None:
    result, events, _ = await lands_after_it_was_given_up(Shard)
    assert result == "both"
    assert events.count("ActivityCompleted") == 2


async def test_h04_rebuilding_a_published_number_loses_what_was_acknowledged(autojump_clock: MockClock) -> None:
    _, events, waiting = await lands_after_it_was_given_up(ShardThatRebuilds)
    assert events.count("ActivityCompleted") == 1
    assert "WorkflowCompleted" not in events
    assert waiting == 0, "nothing should be left that could wake the run"


def commit(commit_id: str, workflow_id: str = "w") -> PendingCommit:
    body = encode_commit(
        Commit(run_id="r", commit_id=commit_id, first_n=1, finished=True, consumed=0, events=(), code_hash="same")
    )
    return PendingCommit(workflow_id, 1, commit_id, body)


class ComparingAuthors(CommitLoop):
    @staticmethod
    def is_same(commit: PendingCommit, standing: Stored) -> bool:
        return True


@pytest.mark.parametrize(("loop_type", "both_believe"), [(CommitLoop, False), (ComparingAuthors, True)])
async def test_h04_of_two_commits_under_one_number_only_the_one_that_stands_is_believed(
    server: ServerUnderTest, namespace: Namespace, loop_type: type[CommitLoop], both_believe: bool
) -> None:
    """The server stalls until the first author has given up waiting. Absence proves nothing: it repeats the bytes."""
    _, b, subjects = namespace
    a = await server.connect("impatient", answer_timeout=0.5)
    believed: dict[str, bool] = {}
    all_known = trio.Event()

    def believe(commit_id: str, is_ours: bool) -> None:
        believed[commit_id] = is_ours
        if len(believed) == 2:
            all_known.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            def loop(broker: Any) -> CommitLoop:
                return loop_type(broker, subjects, nursery.start_soon, lambda level, words: None)

            server.pause()
            loop(a).publish(commit("first"), lambda is_ours: believe("first", is_ours))
            await trio.sleep(1.0)  # past the answer timeout: now it publishes again and again
            loop(b).publish(commit("second"), lambda is_ours: believe("second", is_ours))
            server.resume()
            await all_known.wait()
            nursery.cancel_scope.cancel()
        standing = await b.last(subjects.history_stream(0), subjects.history("w", 1), confirmed=True)
    assert standing is not None
    if both_believe:
        assert believed == {"first": True, "second": True}, "an acknowledged decision is lost"
    else:
        assert believed == {
            "first": standing.body == commit("first").body,
            "second": standing.body == commit("second").body,
        }
        assert sum(believed.values()) == 1
