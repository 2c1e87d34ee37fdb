"""Signals are recorded once or refused, and handled; queries see those that were acknowledged before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import (
    ContinuedAsNew,
    ExternalRequested,
    ExternalResolved,
    SignalReceived,
    WorkflowCompleted,
)
from simulator.oracle.runs import Run, Runs
from simulator.oracle.told import QueryTold, SignalTold, Told
from simulator.programs.desk import Carried, Seen
from simulator.programs.nodes import Node


class Signals:
    """The signals in all histories, by the tags that they carry."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.where: dict[str, list[tuple[Run, int]]] = defaultdict(list)
        """The runs that were given a signal, and at which event."""
        for run in runs.all:
            if not run.started.continued_from:
                for signal in run.started.signals:
                    self.where[_tag(signal.arguments)].append((run, 1))
            for event in run.events:
                if isinstance(event, SignalReceived):
                    self.where[_tag(event.arguments)].append((run, event.id))

    def count(self, tag: str, workflow_id: str) -> int:
        """How often this workflow id was given the signal."""
        return sum(run.workflow_id == workflow_id for run, _ in self.where.get(tag, ()))


def broken_signals(signals: Signals, told: Sequence[Told]) -> Iterator[str]:
    """Acknowledged signals are in the history of their workflow once, refused ones nowhere."""
    for tag, where in signals.where.items():
        if len(where) > 1:
            yield f"{where[0][0].workflow_id}: signal {tag} was recorded {len(where)} times"
    for word in told:
        if isinstance(word, SignalTold):
            yield from _flaw(signals, word.workflow_id, word.tag, word.applied, "its client")
    for run in signals.runs.all:
        asked = {it.call: it for it in run.events if isinstance(it, ExternalRequested) and it.kind == "signal"}
        for event in run.events:
            if isinstance(event, ExternalResolved) and event.call in asked:
                request = asked[event.call]
                applied, tag = event.failure is None, _tag(request.arguments)
                yield from _flaw(signals, request.workflow_id, tag, applied, run.who)


def _flaw(signals: Signals, workflow_id: str, tag: str, applied: bool, sender: str) -> Iterator[str]:
    count = signals.count(tag, workflow_id)
    if applied and not count:
        yield f"{workflow_id}: signal {tag} was acknowledged to {sender}, and is not in the history"
    elif not applied and count:
        yield f"{workflow_id}: signal {tag} was refused to {sender}, and is in the history"


def blind_queries(signals: Signals, told: Sequence[Told]) -> Iterator[str]:
    """A query sees every signal that was acknowledged before it was asked."""
    for word in told:
        if not isinstance(word, QueryTold):
            continue
        run = signals.runs.by_run_id.get(word.seen.run_id)
        if run is None:
            yield f"{word.workflow_id}: a query was answered by run {word.seen.run_id}, which does not exist"
            continue
        story = signals.runs.story_of(run)
        for earlier in told[: word.since]:
            if isinstance(earlier, SignalTold) and earlier.applied and earlier.workflow_id == word.workflow_id:
                yield from _overlooked(signals, word, earlier.tag, run, story)


def _overlooked(signals: Signals, word: QueryTold, tag: str, run: Run, story: list[Run]) -> Iterator[str]:
    for place, event_id in signals.where.get(tag, ()):
        is_late = place is run and word.seen.over_at is not None and event_id >= word.seen.over_at
        if place in story and not is_late and tag in _handled_at_once(place, run) and tag not in word.seen.nudges:
            yield f"{run.who}: a query did not see signal {tag}, which had been acknowledged"


def _handled_at_once(place: Run, run: Run) -> set[str]:
    return {tag for it in (place, run) for name, tag, _ in _given(it) if name == "nudge"}


def lost_messages(run: Run, runs: Runs, seen: Seen | None) -> Iterator[str]:
    """What a run was given was handled or goes on to the next run.

    Args:
        seen: what the run says of itself when it is asked after its end; None: it cannot be asked.
    """
    given = list(_given(run))
    before = _carried_by(run)
    known = set() if before is None else {*before.nudges, *before.errands, *before.parcels}
    following = runs.by_run_id.get(run.next_run_id)
    if isinstance(run.terminal, ContinuedAsNew) and following is not None:
        after = _carried_by(following)
        left = [_tag(signal.arguments) for signal in following.started.signals]
        if after is None:
            yield f"{run.who}: continued as {following.started.workflow}"
            return
        kept = Counter([*after.nudges, *after.parcels, *left])
        yield from (f"{run.who}: signal {tag} goes on {count} times" for tag, count in kept.items() if count > 1)
        there = {*kept, *after.errands}
        lost = [tag for _, tag, _ in given if tag not in there] + sorted(known - there)
        yield from (f"{run.who}: signal {tag} is lost to the next run" for tag in lost)
    elif isinstance(run.terminal, WorkflowCompleted) and seen is not None:
        over_at = seen.over_at or 0
        wanted = [tag for name, tag, at in given if name in ("nudge", "errand") and at < over_at]
        there = {*seen.nudges, *seen.errands}
        yield from (f"{run.who}: signal {tag} was never handled" for tag in wanted if tag not in there)
        twice = Counter([*seen.nudges, *seen.parcels])
        yield from (f"{run.who}: signal {tag} was handled {n} times" for tag, n in twice.items() if n > 1)


def _given(run: Run) -> Iterator[tuple[str, str, int]]:
    """Name, tag and event of the signals that a run was given."""
    for signal in run.started.signals:
        yield signal.name, _tag(signal.arguments), 1
    for event in run.events:
        if isinstance(event, SignalReceived):
            yield event.name, _tag(event.arguments), event.id


def _carried_by(run: Run) -> Seen | None:
    """What the runs before had seen."""
    if run.started.workflow != "further":
        return None
    _, carried = codec.decode_arguments(run.started.arguments, (Node, Carried))
    assert isinstance(carried, Carried)
    return carried.seen


def _tag(arguments: Payload | None) -> str:
    values: list[str] = [] if arguments is None else codec.decode_value(arguments, list[str])
    return values[0] if values else ""
