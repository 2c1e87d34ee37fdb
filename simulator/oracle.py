"""The judge: what has to be true of a namespace, of what activities did and of what clients were told, whatever was
killed and lost meanwhile.

It knows nothing of how the evidence came about: simulated lives and storms over real processes are judged alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.history.commit import Commit, decode_commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    Event,
    WorkflowStarted,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.history.state import fold
from durablefuture_trio.ports.broker import Stored
from durablefuture_trio.ports.frames import Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost


@dataclass(frozen=True)
class Ran:
    """An attempt that really began to run somewhere."""

    workflow_id: str
    run_id: str
    activity_id: int
    attempt: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.run_id, self.activity_id, self.attempt


@dataclass(frozen=True)
class StartTold:
    """What a client was told about its start.

    Attributes:
        run_id: the run it was given; None: the start was refused.
        new: whether that run had to be this request's own (it was not told to use an existing one).
    """

    workflow_id: str
    request_id: str
    run_id: str | None
    new: bool


@dataclass(frozen=True)
class EndTold:
    """What a client was told about the end of a run: `how` is the name of the terminal event."""

    workflow_id: str
    run_id: str
    how: str


@dataclass(frozen=True)
class TerminateTold:
    """A client was told that its terminate request was applied, or refused."""

    workflow_id: str
    request_id: str
    applied: bool


Told = StartTold | EndTold | TerminateTold

Outcome = tuple[Literal["completed", "failed", "any"], object]
"""How a workflow has to end: with this result, with a failure of these words (None: of any), or either way."""


@dataclass
class Evidence:
    """What is left when all is over.

    Attributes:
        registry: the code of the workflows.
        histories: every message of the history streams.
        ran: every attempt that began.
        told: what clients were told.
        expected: how each workflow id's runs have to end, by workflow id; those that are missing may end in any way.
            A termination or an execution timeout that somebody asked for is always admitted.
        parked: runs (by workflow id) that may be open, with the reason.
        left: messages, consumers and schedules that nobody should own any more, in words.
    """

    registry: Registry
    histories: Sequence[Stored]
    ran: Sequence[Ran]
    told: Sequence[Told] = ()
    expected: Mapping[str, Outcome] = field(default_factory=dict)
    parked: Mapping[str, str] = field(default_factory=dict)
    left: Sequence[str] = ()


@dataclass
class Run:
    """One run as the history streams hold it."""

    workflow_id: str
    run_id: str
    commits: list[tuple[int, bytes, Commit]]
    events: list[Event]

    @property
    def terminal(self) -> Event | None:
        last = self.events[-1]
        return last if isinstance(last, TERMINAL_EVENTS) else None


@dataclass
class Verdict:
    """What was found: `anomalies` in words (none: all promises were kept), and all runs."""

    anomalies: list[str]
    runs: list[Run]


def judge(evidence: Evidence, *, outcome_of: Callable[[Event], Outcome]) -> Verdict:
    """Find every broken promise.

    Args:
        outcome_of: a terminal event in the terms of `Evidence.expected`.
    """
    anomalies: list[str] = []
    runs = list(_runs(evidence.histories, anomalies))
    scheduled: set[tuple[str, int, int]] = set()
    for run in runs:
        anomalies += _flaws_of_run(run, evidence.parked, scheduled)
        expected = evidence.expected.get(run.workflow_id)
        terminal = run.terminal
        if expected is not None and terminal is not None:
            anomalies += _wrong_end(run, terminal, expected, outcome_of)
    anomalies += _replays(runs, evidence.registry)
    anomalies += _unjustified(evidence.ran, scheduled)
    anomalies += _broken_words(runs, evidence.told)
    anomalies += [f"left behind: {item}" for item in evidence.left]
    return Verdict(anomalies, runs)


def _runs(histories: Iterable[Stored], anomalies: list[str]) -> Iterator[Run]:
    """Every run of every id, oldest first for each id."""
    numbered: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for stored in histories:
        prefix, _, number = stored.subject.rpartition(".")
        numbered[prefix].append((int(number), stored.body))
    for prefix, commits in numbered.items():
        commits.sort()
        if [n for n, _ in commits] != list(range(1, len(commits) + 1)):
            anomalies.append(f"{prefix}: commits {[n for n, _ in commits]}")
        of_id: list[Run] = []
        for n, body in commits:
            commit = decode_commit(body)
            for event in commit.events:
                if isinstance(event, WorkflowStarted):
                    of_id.append(Run(event.workflow_id, event.run_id, [], []))
                elif not of_id:
                    anomalies.append(f"{prefix}: does not begin with WorkflowStarted")
                    break
                of_id[-1].events.append(event)
            if of_id:
                of_id[-1].commits.append((n, body, commit))
        anomalies += [
            f"{run.workflow_id}: a run began before the one before it was closed"
            for run in of_id[:-1]
            if run.terminal is None
        ]
        yield from of_id


def _flaws_of_run(run: Run, parked: Mapping[str, str], scheduled: set[tuple[str, int, int]]) -> Iterator[str]:
    """What is wrong with a history in itself; collects the attempts it justifies."""
    who = f"{run.workflow_id}/{run.run_id[:6]}"
    if (ids := [event.id for event in run.events]) != list(range(1, len(ids) + 1)):
        yield f"{who}: event ids {ids}"
    if any(later.at < earlier.at for earlier, later in pairwise(run.events)):
        yield f"{who}: time went back"
    ends_at = [place for place, event in enumerate(run.events) if isinstance(event, TERMINAL_EVENTS)]
    if len(ends_at) > 1:
        yield f"{who}: closed {len(ends_at)} times"
    if not ends_at and run.workflow_id not in parked:
        yield f"{who}: not closed, after {[type(event).__name__ for event in run.events]}"
    if ends_at and ends_at[0] != len(run.events) - 1:
        yield f"{who}: went on after its end"
    results: Counter[int] = Counter()
    calls: set[int] = set()
    for event in run.events:
        match event:
            case ActivityScheduled():
                key = (run.run_id, event.activity_id, event.attempt)
                if key in scheduled:
                    yield f"{who}: attempt {key[1:]} was scheduled twice"
                scheduled.add(key)
                calls.add(event.activity_id)
            case ActivityCompleted() | ActivityCancelled() | ActivityFailed(retry_at=None):
                results[event.activity_id] += 1
            case ActivityStarted() if (run.run_id, event.activity_id, event.attempt) not in scheduled:
                yield f"{who}: attempt {event.activity_id, event.attempt} started and was never scheduled"
            case _:
                pass
    if twice := {call: count for call, count in results.items() if count > 1}:
        yield f"{who}: calls with more than one result: {twice}"
    if unknown := results.keys() - calls:
        yield f"{who}: results of calls that were never made: {sorted(unknown)}"


def _wrong_end(run: Run, terminal: Event, expected: Outcome, outcome_of: Callable[[Event], Outcome]) -> Iterator[str]:
    if isinstance(terminal, WorkflowTerminated | WorkflowTimedOut) or expected[0] == "any":
        return
    how, value = outcome_of(terminal)
    if how != expected[0] or (expected[1] is not None and value != expected[1]):
        yield f"{run.workflow_id}/{run.run_id[:6]}: ended {how, value}, not {expected}"


def _replays(runs: Iterable[Run], registry: Registry) -> Iterator[str]:
    """Each history folds to one state however it is cut, and replays from scratch."""
    host = ReplayHost(registry.workflows)
    try:
        for run in runs:
            commits = [(n, commit) for n, _, commit in run.commits]
            if not commits:
                continue
            who = f"{run.workflow_id}/{run.run_id[:6]}"
            try:
                state = fold(commits)
            except (KeyError, ValueError, AssertionError) as error:
                yield f"{who}: does not fold: {error!r}"
                continue
            if run.terminal is None and state.terminal is not None:
                yield f"{who}: folds to a closed run"
            if isinstance(run.terminal, WorkflowTerminated | WorkflowTimedOut):
                continue  # its last activation may be missing
            bodies = tuple(body for _, body, _ in run.commits)
            answers = host.handle(LoadRun(exchange=1, run_id=run.run_id, commits=bodies, first=True, last=True))
            if not isinstance(answers[-1], Loaded):
                yield f"{who}: does not replay: {answers}"
    finally:
        host.close()


def _unjustified(ran: Iterable[Ran], scheduled: set[tuple[str, int, int]]) -> Iterator[str]:
    """Whatever ran was asked for by a committed event, and ran once."""
    times = Counter(item.key for item in ran)
    of_id = {item.key: item.workflow_id for item in ran}
    for key, count in times.items():
        if key not in scheduled:
            yield f"{of_id[key]}: attempt {key} ran and was never scheduled"
        if count > 1:
            yield f"{of_id[key]}: attempt {key} ran {count} times"


def _broken_words(runs: Sequence[Run], told: Iterable[Told]) -> Iterator[str]:
    """Requests are applied once or refused, and what a client was told is what the history says."""
    by_run = {run.run_id: run for run in runs}
    starts: dict[str, list[Run]] = defaultdict(list)
    ends: Counter[str] = Counter()
    for run in runs:
        first, last = run.events[0], run.events[-1]
        if isinstance(first, WorkflowStarted) and first.request_id:
            starts[first.request_id].append(run)
        if isinstance(last, WorkflowTerminated) and last.request_id:
            ends[last.request_id] += 1
    yield from (f"start {request} was applied {len(made)} times" for request, made in starts.items() if len(made) > 1)
    yield from (f"terminate {request} was applied {count} times" for request, count in ends.items() if count > 1)
    for word in told:
        match word:
            case StartTold(run_id=None):
                if word.request_id in starts:
                    yield f"{word.workflow_id}: start {word.request_id} was refused to its client, and ran"
            case StartTold(run_id=str(run_id)):
                if run_id not in by_run:
                    yield f"{word.workflow_id}: a client was given run {run_id}, which does not exist"
                elif word.new and by_run[run_id] not in starts[word.request_id]:
                    yield f"{word.workflow_id}: a client was given run {run_id}, which another start had made"
            case EndTold():
                ended = by_run.get(word.run_id)
                how = None if ended is None else type(ended.events[-1]).__name__
                if how != word.how:
                    yield f"{word.workflow_id}: a client was told {word.how}, the history says {how}"
            case TerminateTold():
                if word.applied != (word.request_id in ends):
                    said, done = ("applied" if it else "refused" for it in (word.applied, word.request_id in ends))
                    yield f"{word.workflow_id}: terminate {word.request_id} was {done}, its client was told {said}"
