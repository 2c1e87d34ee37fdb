"""The oracle sees what is wrong: evidence of a healthy life, falsified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import msgspec
import pytest

from durablefuture_trio import codec
from durablefuture_trio.history.commit import decode_commit, encode_commit
from durablefuture_trio.history.events import (
    CancelRequested,
    ChildCompleted,
    ChildInitiated,
    ContinuedAsNew,
    Event,
    SignalReceived,
    UpdateCompleted,
    WorkflowStarted,
)
from simulator import life as life_module
from simulator.life import Life
from simulator.oracle import CancelTold, Evidence, judge
from simulator.oracle.told import QueryTold, SignalTold, Told, UpdateTold
from simulator.programs import expected_of, outcome_of
from simulator.scenario import scenario_of

SEEDS = range(60)


@cache
def evidences() -> tuple[Evidence, ...]:
    """Of some lives without an anomaly."""
    found: list[Evidence] = []

    def judged(evidence: Evidence, **options: object) -> object:
        found.append(evidence)
        return judge(evidence, **options)  # type: ignore[arg-type]  # as it was called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(life_module, "judge", judged)
        for seed in SEEDS:
            assert Life(scenario_of(seed)).live().anomalies == []
    return tuple(found)


def anomalies_of(evidence: Evidence) -> list[str]:
    return judge(evidence, outcome_of=outcome_of, expected_of=expected_of).anomalies


def without_told(evidence: Evidence, word: Told, *instead: Told) -> Evidence:
    return replace(evidence, told=[*(it for it in evidence.told if it is not word), *instead])


Change = Callable[[Event], Event | None]


def changed(evidence: Evidence, wanted: type[Event], change: Change) -> Iterator[Evidence]:
    """The evidence with one event of this kind changed, or taken out; one for each such event."""
    for place, stored in enumerate(evidence.histories):
        commit = decode_commit(stored.body)
        for at, event in enumerate(commit.events):
            if not isinstance(event, wanted):
                continue
            instead = change(event)
            events = (*commit.events[:at], *(() if instead is None else (instead,)), *commit.events[at + 1 :])
            body = encode_commit(msgspec.structs.replace(commit, events=events))
            histories = list(evidence.histories)
            histories[place] = msgspec.structs.replace(stored, body=body)
            yield replace(evidence, histories=histories)


def gone(event: Event) -> Event | None:
    return None


@dataclass(frozen=True)
class Lie:
    """Something that is not true, and the words in which the oracle says so."""

    falsified: Callable[[Evidence], Iterator[Evidence]]
    words: str


def signals_told(evidence: Evidence) -> Iterator[SignalTold]:
    yield from (it for it in evidence.told if isinstance(it, SignalTold))


def updates_told(evidence: Evidence) -> Iterator[UpdateTold]:
    yield from (it for it in evidence.told if isinstance(it, UpdateTold))


def lost_signal(evidence: Evidence) -> Iterator[Evidence]:
    for word in signals_told(evidence):
        yield without_told(evidence, word, replace(word, tag="another", applied=True))


def signal_after_all(evidence: Evidence) -> Iterator[Evidence]:
    for word in signals_told(evidence):
        if word.applied:
            yield without_told(evidence, word, replace(word, applied=False))


def another_value(evidence: Evidence) -> Iterator[Evidence]:
    for word in updates_told(evidence):
        if word.how == "completed":
            yield without_told(evidence, word, replace(word, value=7, wanted=7))


def rejected_after_all(evidence: Evidence) -> Iterator[Evidence]:
    for word in updates_told(evidence):
        if word.how == "completed":
            yield without_told(evidence, word, replace(word, how="rejected", value=None))


def blind_query(evidence: Evidence) -> Iterator[Evidence]:
    for word in evidence.told:
        if isinstance(word, QueryTold) and word.seen.nudges and word.seen.over_at is None:
            blind = replace(word, seen=msgspec.structs.replace(word.seen, nudges=()))
            yield replace(evidence, told=[blind if it is word else it for it in evidence.told])


def unknown_cancel(evidence: Evidence) -> Iterator[Evidence]:
    yield replace(evidence, told=[*evidence.told, CancelTold("nowhere", "c99-cancel", applied=True)])


def cancelled_after_all(evidence: Evidence) -> Iterator[Evidence]:
    for word in evidence.told:
        if isinstance(word, CancelTold) and word.applied:
            yield without_told(evidence, word, replace(word, applied=False))


def another_result_of_child(event: Event) -> Event:
    return msgspec.structs.replace(event, result=codec.encode_value(7))


def another_parent(event: Event) -> Event:
    if isinstance(event, WorkflowStarted) and event.parent is not None:
        return msgspec.structs.replace(event, parent=None)
    return event


def another_next_run(event: Event) -> Event:
    return msgspec.structs.replace(event, next_run_id="elsewhere")


def a_signal_instead(event: Event) -> Event:
    return SignalReceived(id=event.id, at=event.at, name="nudge", arguments=codec.encode_arguments(("nobody's",)))


def in_another_name(event: Event) -> Event:
    return msgspec.structs.replace(event, update_id="another")


def falsely(wanted: type[Event], change: Change) -> Callable[[Evidence], Iterator[Evidence]]:
    return lambda evidence: changed(evidence, wanted, change)


LIES = {
    "a signal that was acknowledged is missing": Lie(lost_signal, "is not in the history"),
    "a signal that was refused is there": Lie(signal_after_all, "was refused to its client, and is in the history"),
    "a signal is dropped from a history": Lie(falsely(SignalReceived, gone), "event ids"),
    "an update was told another result": Lie(another_value, "a client was told 7"),
    "an update that was rejected is there": Lie(rejected_after_all, "that it was rejected, and it was accepted"),
    "an update is completed under another id": Lie(falsely(UpdateCompleted, in_another_name), "and never accepted"),
    "a query does not see what was acknowledged": Lie(blind_query, "a query did not see signal"),
    "a cancel was told that reached nobody": Lie(unknown_cancel, "no run of it ever was"),
    "a cancel that was refused is there": Lie(cancelled_after_all, "was applied, its client was told refused"),
    "nobody has cancelled": Lie(
        falsely(CancelRequested, a_signal_instead), "was cancelled, and nobody has asked for it"
    ),
    "a child ended otherwise than its parent says": Lie(
        falsely(ChildCompleted, another_result_of_child), "its parent was told"
    ),
    "a child was never started": Lie(falsely(WorkflowStarted, another_parent), "was never started"),
    "a child was never called for": Lie(falsely(ChildInitiated, gone), "which never called for one"),
    "a chain has a gap": Lie(falsely(ContinuedAsNew, another_next_run), "is followed by"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_the_oracle_sees_that(name: str) -> None:
    lie = LIES[name]
    tried = 0
    for evidence in evidences():
        for falsified in lie.falsified(evidence):
            tried += 1
            if any(lie.words in anomaly for anomaly in anomalies_of(falsified)):
                return
            if tried > 40:
                break
    raise AssertionError(f"{tried} lies, and none was seen")
