"""Runs that go on from others, and runs that others have started."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from durablefuture_trio.history.events import (
    CallerRecord,
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildInitiated,
    ChildStarted,
    ChildStartFailed,
    ContinuedAsNew,
    ExternalRequested,
    ExternalResolved,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from simulator.oracle.runs import Run, Runs

RELEASE_S = 300.0
"""Longer than it takes, whatever goes wrong, until the open children of a run that has ended are told so."""

_ENDS = {
    WorkflowFailed: "failed",
    WorkflowCancelled: "cancelled",
    WorkflowTerminated: "terminated",
    WorkflowTimedOut: "timed_out",
}


def broken_chains(runs: Runs) -> Iterator[str]:
    """A run that goes on is followed by the one it names, in the same commit, and by nothing else."""
    for of_id in runs.of_id.values():
        for run, following in pairwise((*of_id, None)):
            assert run is not None
            if run.next_run_id:
                yield from _gap(run, following)
            elif following is not None and following.started.continued_from:
                yield f"{following.who}: continues {following.started.continued_from}, which had ended"
        if of_id[0].started.continued_from:
            yield f"{of_id[0].who}: continues {of_id[0].started.continued_from}, which does not exist"


def _gap(run: Run, following: Run | None) -> Iterator[str]:
    if following is None or following.run_id != run.next_run_id:
        yield f"{run.who}: is followed by {following and following.who}, not by {run.next_run_id[:6]}"
        return
    before, after = run.started, following.started
    if following.began_in != run.commits[-1][0]:
        yield f"{run.who}: ended in commit {run.commits[-1][0]}, its next run began in {following.began_in}"
    same: dict[str, tuple[object, object]] = {
        "continued_from": (run.run_id, after.continued_from),
        "chain": (before.chain_id, after.chain_id),
        "deadline": (before.execution_deadline, after.execution_deadline),
        "parent": (before.parent, after.parent),
        "retry policy": (before.retry_policy, after.retry_policy),
    }
    if isinstance(run.terminal, ContinuedAsNew):
        same["cancelled"] = (run.is_cancelled, after.cancel_reason is not None)
        same["workflow"] = (run.terminal.workflow, after.workflow)
        same["arguments"] = (run.terminal.arguments, after.arguments)
    else:
        same["attempt"] = (before.attempt + 1, after.attempt)
        same["arguments"] = (before.arguments, after.arguments)
    for what, (was, is_now) in same.items():
        if was != is_now:
            yield f"{following.who}: {what} is {is_now}, and should be {was}"


def unasked_cancels(runs: Runs) -> Iterator[str]:
    """Nothing is cancelled that nobody has cancelled."""
    for run in runs.all:
        if isinstance(run.terminal, WorkflowCancelled) and not run.is_cancelled:
            yield f"{run.who}: was cancelled, and nobody has asked for it"


def broken_watches(runs: Runs) -> Iterator[str]:
    """Who waited for the end of another workflow was told how it, or one of its runs, ended."""
    for run in runs.all:
        asked = {it.call: it for it in run.events if isinstance(it, ExternalRequested) and it.kind == "result"}
        for event in run.events:
            if not isinstance(event, ExternalResolved) or event.call not in asked:
                continue
            whom = asked[event.call].workflow_id
            ends = [it.terminal for it in runs.of_id.get(whom, ()) if not it.next_run_id]
            if event.failure is None:
                told_truly = any(isinstance(it, WorkflowCompleted) and it.result == event.result for it in ends)
            else:
                told_truly = event.failure.type in (
                    "WorkflowNotFoundError",
                    *(f"{type(it).__name__}Error" for it in ends),
                )
            if not told_truly:
                yield f"{run.who}: was told {event.failure or event.result} of {whom}, which ended {ends}"


def broken_families(runs: Runs) -> Iterator[str]:
    """A child is started once for each ChildInitiated, its parent knows how it ended, and it ends with its parent."""
    children: dict[CallerRecord, list[Run]] = defaultdict(list)
    for run in runs.all:
        if run.started.parent is not None and not run.started.continued_from:
            children[run.started.parent].append(run)
    initiated: set[CallerRecord] = set()
    for run in runs.all:
        for event in run.events:
            if isinstance(event, ChildInitiated):
                call = CallerRecord(run.workflow_id, run.run_id, event.call)
                initiated.add(call)
                yield from _child(runs, run, event, children.get(call, []))
    for call, made in children.items():
        if call not in initiated:
            yield f"{made[0].who}: is a child of {call}, which never called for one"


def _child(runs: Runs, parent: Run, initiated: ChildInitiated, made: list[Run]) -> Iterator[str]:
    who = f"{parent.who}: child {initiated.workflow_id} (call {initiated.call})"
    heard = [it for it in parent.events if getattr(it, "call", None) == initiated.call]
    refused = any(isinstance(it, ChildStartFailed) for it in heard)
    if len(made) > 1:
        yield f"{who} was started {len(made)} times"
    elif made and refused:
        yield f"{who} was refused to its parent, and runs"
    elif not made:
        # An id that the program gave may have been in use.
        may_be_refused = "/" not in initiated.workflow_id
        if not refused and not may_be_refused:
            yield f"{who} was never started"
        if any(isinstance(it, ChildStarted | ChildCompleted | ChildFailed) for it in heard):
            yield f"{who} does not exist, and its parent has heard of it"
    if len(made) != 1:
        return
    child, last = made[0], runs.end_of(made[0])
    for event in heard:
        match event:
            case ChildStarted() if event.run_id != child.run_id:
                yield f"{who} was started as {event.run_id}, which is not {child.run_id}"
            case ChildCompleted():
                result = last.terminal.result if isinstance(last.terminal, WorkflowCompleted) else None
                if result != event.result:
                    yield f"{who} ended {last.terminal}, its parent was told {event.result}"
            case ChildFailed():
                if _ENDS.get(type(last.terminal)) != event.how:  # type: ignore[arg-type]  # an open one is not in there
                    yield f"{who} ended {last.terminal}, its parent was told {event.how}"
                elif isinstance(last.terminal, WorkflowFailed) and last.terminal.failure != event.failure:
                    yield f"{who} failed: {last.terminal.failure}, its parent was told {event.failure}"
            case _:
                pass
    if not any(isinstance(it, ChildCompleted | ChildFailed) for it in heard):
        yield from _release(who, runs, parent, initiated, child, last)


def _release(who: str, runs: Runs, parent: Run, initiated: ChildInitiated, child: Run, last: Run) -> Iterator[str]:
    """The child was open when its parent ended, or had just ended."""
    if parent.terminal is None or last.terminal is None or initiated.parent_close == "abandon":
        return
    asked_after = last.terminal.at - parent.terminal.at
    if initiated.parent_close == "terminate" and not isinstance(last.terminal, WorkflowTerminated):
        if asked_after > RELEASE_S:
            yield f"{who} went on for {asked_after:g} s after the end of its parent, which should have terminated it"
    elif initiated.parent_close == "cancel" and asked_after > RELEASE_S:
        story = [run for run in runs.of_id[child.workflow_id] if run.started.chain_id == child.started.chain_id]
        if not any(isinstance(it, CancelRequested) for run in story for it in run.events):
            yield f"{who} went on for {asked_after:g} s after the end of its parent, which should have cancelled it"
