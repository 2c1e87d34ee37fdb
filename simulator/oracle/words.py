"""What clients were told is what the histories say: starts, ends, terminations, cancels, updates, queries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from durablefuture_trio import codec
from durablefuture_trio.errors import UpdateRejectedError
from durablefuture_trio.history.events import (
    CancelRequested,
    UpdateAccepted,
    UpdateCompleted,
    WorkflowTerminated,
)
from simulator.oracle.runs import Run, Runs
from simulator.oracle.told import CancelTold, EndTold, StartTold, TerminateTold, Told, UpdateTold


def broken_words(runs: Runs, told: Sequence[Told]) -> Iterator[str]:
    """Requests are applied once or refused, and what a client was told is what the history says."""
    starts: dict[str, list[Run]] = defaultdict(list)
    for run in runs.all:
        if run.started.request_id:
            starts[run.started.request_id].append(run)
    ends = Counter(_asked(run.terminal.request_id) for run in runs.all if isinstance(run.terminal, WorkflowTerminated))
    cancels = Counter(
        _asked(event.request_id) for run in runs.all for event in run.events if isinstance(event, CancelRequested)
    )
    for what, applied in (("terminate", ends), ("cancel", cancels)):
        yield from (f"{what} {it} was applied {count} times" for it, count in applied.items() if it and count > 1)
    yield from (f"start {request} was applied {len(made)} times" for request, made in starts.items() if len(made) > 1)
    for word in told:
        match word:
            case StartTold():
                yield from _start(word, runs, starts)
            case EndTold():
                ended = runs.by_run_id.get(word.run_id)
                how = None if ended is None else type(runs.end_of(ended).events[-1]).__name__
                if how != word.how:
                    yield f"{word.workflow_id}: a client was told {word.how}, the history says {how}"
            case TerminateTold():
                if word.applied != (word.request_id in ends):
                    said, done = ("applied" if it else "refused" for it in (word.applied, word.request_id in ends))
                    yield f"{word.workflow_id}: terminate {word.request_id} was {done}, its client was told {said}"
            case CancelTold(applied=False):
                if word.request_id in cancels:
                    yield f"{word.workflow_id}: cancel {word.request_id} was applied, its client was told refused"
            case CancelTold():
                if not any(run.is_cancelled for run in runs.of_id[word.workflow_id]):
                    yield f"{word.workflow_id}: a client was told that it is cancelled, and no run of it ever was"
            case _:
                pass


def _asked(request_id: str) -> str:
    """The id that the client gave: of a chain's later runs it asks again, under an id made of that one."""
    return request_id.partition(" ")[0]


def _start(word: StartTold, runs: Runs, starts: dict[str, list[Run]]) -> Iterator[str]:
    if word.run_id is None:
        if word.request_id in starts:
            yield f"{word.workflow_id}: start {word.request_id} was refused to its client, and ran"
    elif word.run_id not in runs.by_run_id:
        yield f"{word.workflow_id}: a client was given run {word.run_id}, which does not exist"
    elif word.new and runs.by_run_id[word.run_id] not in starts[word.request_id]:
        yield f"{word.workflow_id}: a client was given run {word.run_id}, which another start had made"


# --- updates ----------------------------------------------------------------------------------------------------------


def broken_updates(runs: Runs, told: Iterable[Told]) -> Iterator[str]:
    """An update of one id is carried out once, and everybody is told what came of it."""
    accepted: dict[tuple[str, str], list[Run]] = defaultdict(list)
    completed: dict[tuple[str, str], list[UpdateCompleted]] = defaultdict(list)
    for run in runs.all:
        known = {item.update_id for item in run.started.updates}
        for event in run.events:
            if isinstance(event, UpdateAccepted):
                accepted[run.workflow_id, event.update_id].append(run)
                if event.update_id in known:
                    yield f"{run.who}: update {event.update_id} was accepted again"
                known.add(event.update_id)
            elif isinstance(event, UpdateCompleted):
                completed[run.workflow_id, event.update_id].append(event)
                if event.update_id not in known:
                    yield f"{run.who}: update {event.update_id} was completed and never accepted"
                known.discard(event.update_id)
    for (workflow_id, update_id), done in completed.items():
        if len(done) > 1:
            yield f"{workflow_id}: update {update_id} was completed {len(done)} times"
    for (workflow_id, update_id), where in accepted.items():
        # Again only in another story, when the one before has ended without completing it.
        stories = [runs.story_of(run)[0].run_id for run in where]
        if len(set(stories)) < len(stories):
            yield f"{workflow_id}: update {update_id} was accepted {len(where)} times in one workflow"
    for word in told:
        if isinstance(word, UpdateTold):
            key = word.workflow_id, word.update_id
            yield from _update(word, accepted[key], completed[key])


def _update(word: UpdateTold, accepted: list[Run], completed: list[UpdateCompleted]) -> Iterator[str]:
    who = f"{word.workflow_id}: update {word.update_id}"
    done = completed[0] if completed else None
    rejected = done is not None and done.failure is not None and done.failure.type == UpdateRejectedError.__name__
    match word.how:
        case "completed":
            result = None if done is None or done.result is None else codec.decode_value(done.result, int)
            if result != word.value:
                yield f"{who}: a client was told {word.value}, the history says {result}"
            if word.value != word.wanted:
                yield f"{who}: came to {word.value}, not to {word.wanted}"
        case "failed":
            if not accepted:
                yield f"{who}: a client was told that it failed, and it never was accepted"
            if done is not None and (done.failure is None or rejected) and len(accepted) < 2:
                yield f"{who}: a client was told that it failed, the history says {done}"
        case "rejected":
            if accepted and not rejected and word.alone:
                yield f"{who}: a client was told that it was rejected, and it was accepted"
        case "refused":
            pass
