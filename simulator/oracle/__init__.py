"""The judge: what has to be true of a namespace, of what activities did and of what clients were told, whatever was
killed and lost meanwhile.

It knows nothing of how the evidence came about: simulated lives and storms over real processes are judged alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
    ContinuedAsNew,
    Event,
    HistoryLimitExceeded,
    WorkflowStarted,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.history.state import fold
from durablefuture_trio.ports.broker import Stored
from durablefuture_trio.ports.frames import Evict, Loaded, LoadRun, Queried, Query
from durablefuture_trio.sandbox._host import ReplayHost
from simulator.oracle.chains import broken_chains, broken_families, broken_watches, unasked_cancels
from simulator.oracle.messages import Signals, blind_queries, broken_signals, lost_messages
from simulator.oracle.runs import Run, Runs
from simulator.oracle.told import CancelTold, EndTold, QueryTold, SignalTold, StartTold, TerminateTold, Told, UpdateTold
from simulator.oracle.words import broken_updates, broken_words
from simulator.programs.desk import Seen

__all__ = [
    "CancelTold",
    "EndTold",
    "Evidence",
    "Outcome",
    "QueryTold",
    "Ran",
    "Run",
    "SignalTold",
    "StartTold",
    "TerminateTold",
    "Told",
    "UpdateTold",
    "Verdict",
    "judge",
]

CUT_SHORT = (WorkflowTerminated, WorkflowTimedOut, HistoryLimitExceeded)
"""Ends that come from outside, between two activations or in the middle of one."""

NO_ARGUMENTS = codec.encode_arguments(())


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
class Verdict:
    """What was found: `anomalies` in words (none: all promises were kept), and all runs."""

    anomalies: list[str]
    runs: list[Run]


def judge(
    evidence: Evidence,
    *,
    outcome_of: Callable[[Event], Outcome],
    expected_of: Callable[[WorkflowStarted], Outcome] | None = None,
) -> Verdict:
    """Find every broken promise.

    Args:
        outcome_of: a terminal event in the terms of `Evidence.expected`.
        expected_of: instead of `Evidence.expected`: how a run has to end by what it began with.
    """
    anomalies: list[str] = []
    runs = Runs(evidence.histories, anomalies)
    scheduled: set[tuple[str, int, int]] = set()
    for run in runs.all:
        anomalies += _flaws_of_run(run, evidence.parked, scheduled)
        expected = evidence.expected.get(run.workflow_id) if expected_of is None else expected_of(run.started)
        if expected is not None and run.terminal is not None and not run.is_cancelled:
            anomalies += _wrong_end(run, run.terminal, expected, outcome_of)
    anomalies += broken_chains(runs)
    anomalies += unasked_cancels(runs)
    anomalies += broken_families(runs)
    anomalies += broken_watches(runs)
    anomalies += _replays(runs, evidence.registry)
    anomalies += _unjustified(evidence.ran, scheduled)
    anomalies += broken_words(runs, evidence.told)
    anomalies += broken_updates(runs, evidence.told)
    signals = Signals(runs)
    anomalies += broken_signals(signals, evidence.told)
    anomalies += blind_queries(signals, evidence.told)
    anomalies += [f"left behind: {item}" for item in evidence.left]
    return Verdict(anomalies, runs.all)


def _flaws_of_run(run: Run, parked: Mapping[str, str], scheduled: set[tuple[str, int, int]]) -> Iterator[str]:
    """What is wrong with a history in itself; collects the attempts it justifies."""
    who = run.who
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
    if isinstance(terminal, (*CUT_SHORT, ContinuedAsNew)) or expected[0] == "any":
        return
    how, value = outcome_of(terminal)
    if how != expected[0] or (expected[1] is not None and value != expected[1]):
        yield f"{run.who}: ended {how, value}, not {expected}"


def _replays(runs: Runs, registry: Registry) -> Iterator[str]:
    """Each history folds to one state however it is cut, replays from scratch, and answers queries then."""
    host = ReplayHost(registry.workflows, strict_code=registry.code_hash)
    try:
        for run in runs.all:
            try:
                state = fold([(n, commit) for n, _, commit in run.commits])
            except (KeyError, ValueError, AssertionError) as error:
                yield f"{run.who}: does not fold: {error!r}"
                continue
            if (run.terminal is None) != (state.terminal is None):
                yield f"{run.who}: folds to a {'closed' if run.terminal is None else 'open'} run"
            if isinstance(run.terminal, CUT_SHORT):
                continue  # its last activation may be missing
            bodies = tuple(body for _, body, _ in run.commits)
            load = LoadRun(
                exchange=1, run_id=run.run_id, commits=bodies, first=True, last=True, keep=True,
                patches=tuple(sorted(state.patches)),
            )  # fmt: skip
            answers = host.handle(load)
            if not isinstance(answers[-1], Loaded):
                yield f"{run.who}: does not replay: {answers}"
                continue
            answer = host.handle(
                Query(exchange=2, run_id=run.run_id, activation=state.stimuli, name="seen", arguments=NO_ARGUMENTS)
            )[0]
            seen = answer.result if isinstance(answer, Queried) else None
            yield from lost_messages(run, runs, None if seen is None else codec.decode_value(seen, Seen))
            host.handle(Evict(run_id=run.run_id))
            host.close_evicted()
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
