"""Histories as runs: what belongs to which run, which run goes on from which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from durablefuture_trio.history.commit import Commit, closing_events, decode_commit, encode_commit, own_events
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    CancelRequested,
    ContinuedAsNew,
    Event,
    Terminal,
    WorkflowFailed,
    WorkflowStarted,
)
from durablefuture_trio.ports.broker import Stored


@dataclass
class Run:
    """One run as the history streams hold it.

    Attributes:
        commits: number, bytes and meaning of each. One that closes the run and begins the next is there in both, here
            with the closing events alone, as if it had been written for this run.
        began_in: the number of its first commit.
    """

    workflow_id: str
    run_id: str
    began_in: int
    commits: list[tuple[int, bytes, Commit]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def who(self) -> str:
        """It, for people."""
        return f"{self.workflow_id}/{self.run_id[:6]}"

    @property
    def started(self) -> WorkflowStarted:
        """Its first event."""
        first = self.events[0]
        assert isinstance(first, WorkflowStarted)
        return first

    @property
    def terminal(self) -> Terminal | None:
        """The event that closed it."""
        last = self.events[-1]
        return last if isinstance(last, TERMINAL_EVENTS) else None

    @property
    def next_run_id(self) -> str:
        """The run that goes on from here; empty: none."""
        match self.terminal:
            case ContinuedAsNew(next_run_id=next_run_id) | WorkflowFailed(next_run_id=next_run_id):
                return next_run_id
            case _:
                return ""

    @property
    def is_cancelled(self) -> bool:
        """Whether anybody wanted its end."""
        return self.started.cancel_reason is not None or any(isinstance(it, CancelRequested) for it in self.events)


class Runs:
    """All runs of a namespace, oldest first for each workflow id.

    Args:
        anomalies: takes what is wrong with the numbers and the order.
    """

    def __init__(self, histories: Iterable[Stored], anomalies: list[str]) -> None:
        self.all = list(_read(histories, anomalies))
        self.by_run_id = {run.run_id: run for run in self.all}
        self.of_id: dict[str, list[Run]] = defaultdict(list)
        for run in self.all:
            self.of_id[run.workflow_id].append(run)

    def end_of(self, run: Run) -> Run:
        """The last run of the chain that goes on from this one, as far as there are any."""
        while (following := self.by_run_id.get(run.next_run_id)) is not None:
            run = following
        return run

    def story_of(self, run: Run) -> list[Run]:
        """The runs that continued as new until this one, and this one: they know what the ones before were told."""
        story = [run]
        while (before := self.by_run_id.get(story[0].started.continued_from)) is not None and isinstance(
            before.terminal, ContinuedAsNew
        ):
            story.insert(0, before)
        return story


def _read(histories: Iterable[Stored], anomalies: list[str]) -> Iterator[Run]:
    numbered: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for stored in histories:
        prefix, _, number = stored.subject.rpartition(".")
        numbered[prefix].append((int(number), stored.body))
    for prefix, commits in numbered.items():
        commits.sort()
        if [n for n, _ in commits] != list(range(1, len(commits) + 1)):
            anomalies.append(f"{prefix}: commits {[n for n, _ in commits]}")
        runs = _runs_of(commits)
        if not runs or runs[0].began_in != commits[0][0]:
            anomalies.append(f"{prefix}: does not begin with WorkflowStarted")
        anomalies += [
            f"{run.workflow_id}: a run began before the one before it was closed"
            for run in runs[:-1]
            if run.terminal is None
        ]
        yield from runs


def _runs_of(commits: Sequence[tuple[int, bytes]]) -> list[Run]:
    runs: list[Run] = []
    for n, body in commits:
        commit = decode_commit(body)
        if runs and (closing := closing_events(commit)):
            runs[-1].events += closing
            closed = msgspec.structs.replace(
                commit, run_id=runs[-1].run_id, first_n=runs[-1].began_in, finished=True, wake_at=None, events=closing
            )
            runs[-1].commits.append((n, encode_commit(closed), closed))
        events = own_events(commit)
        if events and isinstance(events[0], WorkflowStarted):
            runs.append(Run(events[0].workflow_id, events[0].run_id, n))
        if runs:
            runs[-1].events += events
            runs[-1].commits.append((n, body, commit))
    return runs
