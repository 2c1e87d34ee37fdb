"""The commit loop: publish a commit until its number is occupied, then see by whom."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.commit import decode_commit
from durablefuture_trio.ports.broker import Append, AppendOutcome, Broker, BrokerError, Conflict, Stored, StoreFull
from durablefuture_trio.protocol.subjects import Subjects

RETRY_S = 0.25

TELL_FULL_EVERY_S = 30.0


class PendingCommit(msgspec.Struct, frozen=True):
    """A frozen commit on its way. Its bytes never change, whatever becomes of the publishes."""

    workflow_id: str
    n: int
    commit_id: str
    body: bytes


class CommitLoop:
    """Publishes commits with the expectation that their subject is empty.

    An acknowledgement ends it. A conflict is looked into: if the standing commit has this commit's id, an earlier
    publish of it has landed after all. Silence proves nothing, not even an absent number: the identical bytes are
    published again until the number is occupied.

    Args:
        spawn: runs an async function as a background task; after its owner's end it does nothing.
        report: gets a log level and words for an operator.
    """

    def __init__(
        self,
        broker: Broker,
        subjects: Subjects,
        spawn: Callable[..., None],
        report: Callable[[str, str], None],
    ) -> None:
        self._broker = broker
        self._subjects = subjects
        self._spawn = spawn
        self._report = report
        self._tell_full_at = float("-inf")

    def publish(self, commit: PendingCommit, on_result: Callable[[bool], None]) -> None:
        """Publish; `on_result` gets True when this commit holds its number, False when another one does."""

        def answered(outcome: AppendOutcome) -> None:
            if isinstance(outcome, int):
                on_result(True)
            else:
                self._spawn(self._resolve, commit, outcome, on_result)

        self._broker.append_soon(self._append(commit), answered)

    def _append(self, commit: PendingCommit) -> Append:
        return Append(subject=self._subjects.history(commit.workflow_id, commit.n), body=commit.body, expect_last=0)

    async def _resolve(self, commit: PendingCommit, outcome: BrokerError, on_result: Callable[[bool], None]) -> None:
        while True:
            try:
                if isinstance(outcome, Conflict):
                    standing = await self._standing(commit)
                    if standing is not None:
                        on_result(self.is_same(commit, standing))
                        return
                elif isinstance(outcome, StoreFull):
                    self._tell_full(outcome)
                await self._pause()
                await self._broker.append(self._append(commit))
            except BrokerError as error:
                outcome = error
                continue
            on_result(True)
            return

    def _tell_full(self, outcome: StoreFull) -> None:
        now = trio.current_time()
        # Every commit of every run meets it, several times a second.
        if now >= self._tell_full_at:
            self._tell_full_at = now + TELL_FULL_EVERY_S
            self._report("error", f"the server's store is full; commits wait until there is room: {outcome}")

    async def _pause(self) -> None:
        link = self._broker.link
        if link.up:
            await trio.sleep(RETRY_S)
        while not link.up:
            await link.changed(link.generation)

    async def _standing(self, commit: PendingCommit) -> Stored | None:
        subjects = self._subjects
        stream = subjects.history_stream(subjects.shard_of(commit.workflow_id))
        return await self._broker.last(stream, subjects.history(commit.workflow_id, commit.n), confirmed=True)

    @staticmethod
    def is_same(commit: PendingCommit, standing: Stored) -> bool:
        """Whether the number is held by this very commit; its author alone says nothing."""
        try:
            return decode_commit(standing.body).commit_id == commit.commit_id
        except HistoryError:
            return False
