"""What has to be true of histories, witnesses and streams, whatever was killed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import trio

from durablefuture_trio.client import Client
from durablefuture_trio.client._records import HistoryEvent
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ActivityStarted,
)
from durablefuture_trio.ports.broker import Broker, BrokerError
from durablefuture_trio.protocol.subjects import Subjects
from simulator.storm.remains import remains
from tests._support.witnesses import Witness

logger = logging.getLogger("tests.chaos")

QUIET_AFTER_S = 10.0


def table(history: Sequence[HistoryEvent]) -> list[str]:
    """A history in words."""
    return [_words(item) for item in history]


def _words(item: HistoryEvent) -> str:
    words = {
        "WorkflowStarted": "started",
        "ActivityScheduled": "scheduled",
        "ActivityStarted": "started",
        "ActivityCompleted": "completed",
        "WorkflowCompleted": "workflow completed",
        "TimerFired": "timer fired",
    }
    match item.event:
        case ActivityScheduled(attempt=attempt) if attempt > 1:
            return f"scheduled (attempt {attempt})"
        case ActivityFailed(reason=reason):
            return f"failed ({reason})"
        case other:
            return words.get(type(other).__name__, type(other).__name__)


def check_histories(histories: Mapping[str, Sequence[HistoryEvent]], witnesses: Iterable[Witness]) -> None:
    """Ids are contiguous, each call has one result, and whatever ran was asked for by a committed event, once.

    Args:
        histories: all of the test, by workflow id; each of a closed run.
    """
    scheduled: Counter[tuple[str, int, int]] = Counter()
    for workflow_id, history in histories.items():
        assert [item.id for item in history] == list(range(1, len(history) + 1)), (workflow_id, table(history))
        assert len({item.run_id for item in history}) == 1, workflow_id
        run_id = history[0].run_id
        results: Counter[int] = Counter()
        calls: set[int] = set()
        for item in history:
            match item.event:
                case ActivityScheduled(activity_id=call, attempt=attempt):
                    scheduled[run_id, call, attempt] += 1
                    calls.add(call)
                case ActivityCompleted(activity_id=call) | ActivityCancelled(activity_id=call):
                    results[call] += 1
                case ActivityFailed(activity_id=call, retry_at=None):
                    results[call] += 1
                case ActivityStarted(activity_id=call):
                    assert call in calls, (workflow_id, table(history))
        assert results == Counter(dict.fromkeys(calls, 1)), (workflow_id, table(history))
        assert [item.at for item in history] == sorted(item.at for item in history), workflow_id
    assert set(scheduled.values()) <= {1}, "an attempt was scheduled twice"
    begun = Counter(witness.key for witness in witnesses if witness.what == "begin")
    unjustified = begun.keys() - scheduled.keys()
    assert not unjustified, f"ran without an event: {unjustified}"
    assert set(begun.values()) <= {1}, f"ran twice: {[key for key, count in begun.items() if count > 1]}"


async def histories_of(client: Client, workflow_ids: Iterable[str]) -> dict[str, list[HistoryEvent]]:
    """The histories of these workflows."""
    return {workflow_id: await client.handle(workflow_id).history() for workflow_id in workflow_ids}


async def until_quiet(broker: Broker, subjects: Subjects, *, within_s: float = QUIET_AFTER_S) -> None:
    """Wait until nothing remains of runs that have all closed.

    Raises:
        AssertionError: something does, for too long.
    """
    left: list[str] = ["nothing could be read"]
    with trio.move_on_after(within_s):
        while left:
            try:
                left = await remains(broker, subjects)
            except BrokerError as error:
                logger.info("the streams cannot be read now: %r", error)
            await trio.sleep(0.05)
        return
    raise AssertionError(f"not quiet after {within_s:g} s: " + "; ".join(left))
