"""The numbers of an id go on across its runs: it must not matter how many there are."""

from __future__ import annotations

import pytest
import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.history.events import Event, TimerFired, WorkflowCompleted, WorkflowStarted
from durablefuture_trio.ports.broker import Append, Rejected
from durablefuture_trio.protocol.loading import HistoryReader, NumberedCommit, load_state, numbered
from tests._support.broker_servers import publish_all
from tests.holes.conftest import Namespace


class WildcardReader(HistoryReader):
    """Asks for all commits of the id at once."""

    async def _chunk(self, workflow_id: str, start: int, stop: int) -> list[NumberedCommit]:
        stream = self._subjects.history_stream(0)
        found = await self._broker.many(stream, [self._subjects.history_prefix(workflow_id) + "*"])
        return [item for item in map(numbered, found) if start <= item.n < stop]


def runs(lengths: list[int], *, subjects_of: Namespace) -> list[Append]:
    """Closed runs of one id, one after the other; the last one is open."""
    appends: list[Append] = []
    n = 0
    for number, length in enumerate(lengths):
        first_n = n + 1
        for position in range(length):
            n += 1
            event: Event
            if position == 0:
                event = WorkflowStarted(
                    id=1, at=1.0, workflow_id="w", run_id=f"r{number}", workflow="entity", arguments=Payload(b"[]")
                )
            elif position == length - 1 and number < len(lengths) - 1:
                event = WorkflowCompleted(id=position + 1, at=1.0, result=Payload(b"null"))
            else:
                event = TimerFired(id=position + 1, at=1.0, deadline=1.0)
            commit = Commit(
                run_id=f"r{number}", commit_id=str(n), first_n=first_n, finished=True, consumed=n, events=(event,)
            )
            appends.append(
                Append(subject=subjects_of.subjects.history("w", n), body=encode_commit(commit), expect_last=0)
            )
    return appends


@pytest.mark.parametrize("lengths", [[400, 400, 300], [1100]])
async def test_h17_an_id_with_more_than_1024_commits_is_loaded(namespace: Namespace, lengths: list[int]) -> None:
    a, b, subjects = namespace
    await publish_all(a, runs(lengths, subjects_of=namespace))
    with trio.fail_after(20):
        state = await load_state(HistoryReader(b, subjects), "w")
    assert state is not None
    assert (state.tip_n, state.last_event_id) == (1100, lengths[-1])
    assert state.run_id == f"r{len(lengths) - 1}"


async def test_h17_asking_for_all_of_an_id_at_once_is_refused(namespace: Namespace) -> None:
    a, b, subjects = namespace
    await publish_all(a, runs([400, 400, 300], subjects_of=namespace))
    with trio.fail_after(20), pytest.raises(Rejected):
        await load_state(WildcardReader(b, subjects), "w")
