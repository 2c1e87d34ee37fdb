"""The runs in a history stream: read, checked, and replayed from scratch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.history.commit import Commit, closing_events, decode_commit, encode_commit, own_events
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ChildStartFailed,
    ContinuedAsNew,
    Event,
    ExternalRequested,
    ExternalResolved,
    HistoryLimitExceeded,
    MarkerRecorded,
    SignalReceived,
    UpdateCompleted,
    WorkflowStarted,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.ports.broker import Stored
from durablefuture_trio.ports.frames import Loaded, LoadRun, SandboxUp
from durablefuture_trio.sandbox._host import ReplayHost
from simulator.pools import Witness


@dataclass
class RunHistory:
    """One run: its commits (with nothing of the runs beside it) and its events."""

    workflow_id: str
    run_id: str
    commits: list[Commit] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def terminal(self) -> Event | None:
        """The event it ended with."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, TERMINAL_EVENTS) else None

    @property
    def kinds(self) -> list[str]:
        """The names of its events, without the bookkeeping of attempts."""
        return [
            type(event).__name__
            for event in self.events
            if not isinstance(event, ActivityStarted)
            and not (isinstance(event, ActivityScheduled) and event.attempt > 1)
            and not (isinstance(event, ActivityFailed) and event.retry_at is not None)
        ]

    @property
    def patches(self) -> tuple[str, ...]:
        """The patches it has markers of."""
        return tuple(sorted({event.patch for event in self.events if isinstance(event, MarkerRecorded)}))

    @property
    def bodies(self) -> tuple[bytes, ...]:
        """The commits as stored."""
        return tuple(encode_commit(commit) for commit in self.commits)


def read_runs(histories: Iterable[Stored]) -> list[RunHistory]:
    """Every run, oldest first for each workflow id.

    Raises:
        AssertionError: a commit is missing, or stands where it cannot.
    """
    numbered: dict[str, list[tuple[int, Commit]]] = defaultdict(list)
    for stored in histories:
        prefix, _, number = stored.subject.rpartition(".")
        numbered[prefix].append((int(number), decode_commit(stored.body)))
    runs: list[RunHistory] = []
    for prefix, commits in numbered.items():
        commits.sort(key=lambda item: item[0])
        assert [n for n, _ in commits] == list(range(1, len(commits) + 1)), f"{prefix}: {[n for n, _ in commits]}"
        run: RunHistory | None = None
        for _, commit in commits:
            before, own = closing_events(commit), own_events(commit)
            if before:
                assert run is not None, f"{prefix}: the end of a run that never began"
                _append(run, msgspec.structs.replace(commit, run_id=run.run_id, first_n=_first_n(run), events=before))
            if own and isinstance(own[0], WorkflowStarted):
                run = RunHistory(own[0].workflow_id, own[0].run_id)
                runs.append(run)
            if own or not before:
                if run is None:
                    continue  # it only remembers a refused request
                _append(run, msgspec.structs.replace(commit, events=own))
    return runs


def _first_n(run: RunHistory) -> int:
    return run.commits[0].first_n


def _append(run: RunHistory, commit: Commit) -> None:
    run.commits.append(commit)
    run.events += commit.events


def replay(run: RunHistory, registry: Registry) -> SandboxUp:
    """Load a history into a fresh host; gives its answer."""
    host = ReplayHost(registry.workflows)
    try:
        frame = LoadRun(exchange=1, run_id=run.run_id, commits=run.bodies, first=True, last=True, patches=run.patches)
        return host.handle(frame)[-1]
    finally:
        host.close()


def replayable(run: RunHistory, open_runs: frozenset[str]) -> bool:
    """Whether the code that was deployed last has to replay it."""
    if run.terminal is None and run.workflow_id in open_runs:
        return False  # what blocks it may be what it is left open for
    # Ended from outside: the last activation may be missing.
    return not isinstance(run.terminal, WorkflowTerminated | WorkflowTimedOut | HistoryLimitExceeded)


def flaws(
    runs: Sequence[RunHistory], registry: Registry, ran: Iterable[Witness], open_runs: frozenset[str]
) -> list[str]:
    """Every promise that is broken, in words.

    Args:
        open_runs: workflow ids whose last run may be open (or blocked).
    """
    found: list[str] = []
    scheduled: set[tuple[str, int, int]] = set()
    for run in runs:
        who = f"{run.workflow_id}/{run.run_id[:8]}"
        found += [f"{who}: {flaw}" for flaw in (*_flaws_of(run), *_outcomes(run))]
        scheduled |= {
            (run.run_id, it.activity_id, it.attempt) for it in run.events if isinstance(it, ActivityScheduled)
        }
        if not replayable(run, open_runs):
            continue
        answer = replay(run, registry)
        if not isinstance(answer, Loaded) or (answer.unmatched and run.terminal is not None):
            found.append(f"{who}: does not replay: {answer}")
    found += _between(runs)
    for key, count in Counter((it.key.run_id, it.key.activity_id, it.key.attempt) for it in ran).items():
        if key not in scheduled:
            found.append(f"attempt {key} ran and was never scheduled")
        if count > 1:
            found.append(f"attempt {key} ran {count} times")
    return found


def _flaws_of(run: RunHistory) -> Iterator[str]:
    if (ids := [event.id for event in run.events]) != list(range(1, len(ids) + 1)):
        yield f"event ids {ids}"
    if any(later.at < earlier.at for earlier, later in pairwise(run.events)):
        yield "time went back"
    ends = [place for place, event in enumerate(run.events) if isinstance(event, TERMINAL_EVENTS)]
    if ends and ends != [len(run.events) - 1]:
        yield f"ended at {ends} of {len(run.events)} events"


def _outcomes(run: RunHistory) -> Iterator[str]:
    """Everything that was asked for has at most one outcome, and everything with an outcome was asked for."""
    asked: set[tuple[str, object]] = set()
    outcomes: Counter[tuple[str, object]] = Counter()
    for event in run.events:
        match event:
            case ActivityScheduled(attempt=1):
                asked.add(("call", event.activity_id))
            case ActivityCompleted() | ActivityCancelled() | ActivityFailed(retry_at=None):
                outcomes["call", event.activity_id] += 1
            case ChildInitiated():
                asked |= {("call", event.call), ("start of", event.call)}
            case ChildStarted():
                outcomes["start of", event.call] += 1
            case ChildCompleted() | ChildFailed() | ChildStartFailed():
                outcomes["call", event.call] += 1
            case ExternalRequested():
                asked.add(("call", event.call))
            case ExternalResolved():
                outcomes["call", event.call] += 1
            case UpdateCompleted():
                asked.add(("update", event.update_id))
                outcomes["update", event.update_id] += 1
            case SignalReceived() if event.request_id:
                asked.add(("signal", event.request_id))
                outcomes["signal", event.request_id] += 1
            case _:
                pass
    yield from (f"{key} has {count} outcomes" for key, count in outcomes.items() if count > 1)
    yield from (f"{key} has an outcome and was never asked for" for key in outcomes.keys() - asked)


def _between(runs: Sequence[RunHistory]) -> Iterator[str]:
    """A start, and the call of a parent, leads to one run; a chain goes on where it says."""
    starts: Counter[str] = Counter()
    children: Counter[tuple[str, int]] = Counter()
    by_run = {run.run_id: run for run in runs}
    for run in runs:
        started = run.events[0]
        assert isinstance(started, WorkflowStarted)
        if started.request_id and not started.continued_from:
            starts[started.request_id] += 1
        if started.parent is not None and not started.continued_from:
            children[started.parent.run_id, started.parent.call] += 1
        if isinstance(run.terminal, ContinuedAsNew) and run.terminal.next_run_id not in by_run:
            yield f"{run.workflow_id}: continued as a run that does not exist"
    yield from (f"start {request} was applied {count} times" for request, count in starts.items() if count > 1)
    yield from (f"call {call} of a parent started {count} children" for call, count in children.items() if count > 1)
