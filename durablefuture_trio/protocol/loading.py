"""Reading histories: the tip, then everything from the run's first commit up to it.

The tip is the last message of the workflow id, probed upward with literal subjects until one is absent. Then literal
subjects in chunks: a wildcard read fails above 1,024 subjects, and all runs of an id share one row of numbers. A
history that comes back with a hole is an error, never a shorter history.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.commit import Commit, closing_events, decode_commit
from durablefuture_trio.history.events import TERMINAL_EVENTS, Terminal
from durablefuture_trio.history.state import RunState, begin
from durablefuture_trio.ports.broker import Broker, Incomplete, Stored
from durablefuture_trio.protocol.subjects import Subjects

CHUNK_COMMITS = 1000
"""Literal subjects in one batched read; the server refuses above 1,024."""

_ATTEMPTS = 3


class NumberedCommit(msgspec.Struct, frozen=True):
    """A stored commit: its number, its meaning, and its bytes as they came."""

    n: int
    commit: Commit
    body: bytes
    time: float


def number_of(subject: str) -> int:
    """The commit number at the end of a history subject."""
    return int(subject.rpartition(".")[2])


def numbered(stored: Stored) -> NumberedCommit:
    """Decode a stored history message.

    Raises:
        HistoryError: it cannot be read; subject and sequence are named.
    """
    commit = decode_commit(stored.body, subject=stored.subject, sequence=stored.seq)
    return NumberedCommit(number_of(stored.subject), commit, stored.body, stored.time)


class HistoryReader:
    """Reads the histories of a namespace."""

    def __init__(self, broker: Broker, subjects: Subjects) -> None:
        self._broker = broker
        self._subjects = subjects

    async def tip(self, workflow_id: str, *, confirmed: bool = False) -> NumberedCommit | None:
        """The last commit of a workflow id, or None if it has none.

        Args:
            confirmed: ask the leader: the answer may justify a decision that leaves no commit behind.

        Raises:
            HistoryError: it cannot be read. BrokerError: as the server says.
        """
        subjects = self._subjects
        stream = subjects.history_stream(subjects.shard_of(workflow_id))
        prefix = subjects.history_prefix(workflow_id)
        stored = await self._broker.last(stream, prefix + "*", confirmed=confirmed)
        if stored is None:
            return None
        if not confirmed:
            # A replica may be behind, and the highest sequence need not be the highest number: look upward.
            while above := await self._broker.last(stream, f"{prefix}{number_of(stored.subject) + 1}"):
                stored = above
        return numbered(stored)

    async def commits(self, workflow_id: str, first_n: int, tip_n: int) -> AsyncGenerator[list[NumberedCommit], None]:
        """Commits `first_n` to `tip_n` in chunks, in order.

        Raises:
            HistoryError: one is missing or cannot be read. BrokerError: as the server says.
        """
        for start in range(first_n, tip_n + 1, CHUNK_COMMITS):
            stop = min(start + CHUNK_COMMITS, tip_n + 1)
            yield await self._chunk(workflow_id, start, stop)

    async def _chunk(self, workflow_id: str, start: int, stop: int) -> list[NumberedCommit]:
        subjects = self._subjects
        stream = subjects.history_stream(subjects.shard_of(workflow_id))
        prefix = subjects.history_prefix(workflow_id)
        found: dict[int, NumberedCommit] = {}
        for _ in range(_ATTEMPTS):
            wanted = [f"{prefix}{n}" for n in range(start, stop) if n not in found]
            try:
                for stored in await self._broker.many(stream, wanted):
                    commit = numbered(stored)
                    found[commit.n] = commit
            except Incomplete:
                continue
            if len(found) == stop - start:
                return [found[n] for n in range(start, stop)]
        for missing in (n for n in range(start, stop) if n not in found):
            # Replicas that are behind may answer each batch: only the leader's word is that a message is gone.
            leaders = await self._broker.last(stream, f"{prefix}{missing}", confirmed=True)
            if leaders is None:
                break
            found[missing] = numbered(leaders)
        else:
            return [found[n] for n in range(start, stop)]
        raise HistoryError(
            f"history of workflow {workflow_id!r} has no commit {missing} ({prefix}{missing}): messages were removed "
            "from the stream. The run waits: restore the stream from a backup.",
            subject=f"{prefix}{missing}",
            sequence=0,
        )

    async def run_before(self, commit: NumberedCommit, workflow_id: str) -> NumberedCommit | None:
        """The last commit of the run before the one `commit` belongs to, or None if there is none.

        When a single commit closed that run and began the next one, it is that commit (see `closing_events`).
        """
        first_n = commit.commit.first_n
        if first_n <= 1:
            return None
        first = commit if commit.n == first_n else (await self._chunk(workflow_id, first_n, first_n + 1))[0]
        before = (await self._chunk(workflow_id, first_n - 1, first_n))[0]
        if closing := closing_events(first.commit):
            merged = msgspec.structs.replace(before.commit, events=(*before.commit.events, *closing))
            return NumberedCommit(before.n, merged, before.body, first.time)
        return before


class Folder:
    """Folds a history chunk by chunk."""

    def __init__(self) -> None:
        self.state: RunState | None = None

    def add(self, commits: list[NumberedCommit]) -> RunState:
        """Fold the next commits in.

        Raises:
            HistoryError: the first one does not begin a run.
        """
        for item in commits:
            if self.state is None:
                try:
                    self.state = begin(item.n, item.commit)
                except ValueError as error:
                    raise HistoryError(
                        f"commit {item.n} of run {item.commit.run_id} does not begin a run: the history is damaged. "
                        "The run waits: restore the stream from a backup.",
                        subject=str(item.n),
                        sequence=0,
                    ) from error
            self.state.apply_commit(item.n, item.commit)
        assert self.state is not None
        return self.state


async def load_state(reader: HistoryReader, workflow_id: str) -> RunState | None:
    """Fold the latest run of a workflow id; None if the id has no history.

    Raises:
        HistoryError: it cannot be read. BrokerError: as the server says.
    """
    tip = await reader.tip(workflow_id)
    if tip is None:
        return None
    folder = Folder()
    if tip.commit.first_n == tip.n:
        return folder.add([tip])
    async for chunk in reader.commits(workflow_id, tip.commit.first_n, tip.n):
        folder.add(chunk)
    return folder.state


def terminal_of(commit: Commit) -> Terminal | None:
    """The event with which a commit closed its run, or None."""
    last = commit.events[-1] if commit.events else None
    return last if isinstance(last, TERMINAL_EVENTS) else None
