"""What follows from a commit once it is acknowledged."""

from __future__ import annotations

from collections.abc import Iterable

from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import ActivityKey, RunActivity
from durablefuture_trio.engine.draft import Draft
from durablefuture_trio.engine.mail import caller, child_cancel, child_start, end_of, external
from durablefuture_trio.engine.retry import call_deadline
from durablefuture_trio.history.events import ChildCancelRequested, ChildInitiated, Event, ExternalRequested, Terminal
from durablefuture_trio.history.state import ActivityState, RunState


def key_of(state: RunState, activity: ActivityState) -> ActivityKey:
    """The current attempt of a call."""
    return ActivityKey(state.run_id, activity.activity_id, activity.attempt)


def dispatch(state: RunState, activity: ActivityState) -> out.Dispatch:
    """Run the attempt that has just been scheduled. ``start_to_close`` counts from its start, in the worker."""
    options = activity.options
    deadline = call_deadline(activity)
    attempt = RunActivity(
        key=key_of(state, activity),
        workflow_id=state.workflow_id,
        name=activity.name,
        arguments=activity.arguments,
        start_to_close=options.start_to_close_timeout,
        deadline=deadline,
        timeout=None if deadline is None else "schedule_to_close",
        heartbeat_timeout=options.heartbeat_timeout,
    )
    return out.Dispatch(attempt, options.task_queue)


def close(draft: Draft, state: RunState, live: Iterable[ActivityKey], n: int, terminal: Terminal) -> None:
    """The run ends with commit `n`: what was still to be dispatched belongs to nobody any more, what runs is cancelled,
    and whoever waits is told."""
    draft.effects = [effect for effect in draft.effects if not isinstance(effect, out.Dispatch)]
    draft.effects.extend(out.CancelAttempt(key) for key in live if key.run_id == state.run_id)
    draft.effects.append(out.Evict(state.run_id))
    draft.effects.append(out.Closed(state.run_id, n, terminal))
    draft.effects.extend(end_of(state, terminal))


def letters(draft: Draft, state: RunState, event: Event) -> None:
    """What other workflows are told once this command is committed."""
    match event:
        case ChildInitiated():
            draft.effects.append(child_start(caller(state, event.call), event))
        case ChildCancelRequested(call=call) if call in state.children:
            draft.effects.append(child_cancel(state, state.children[call]))
        case ExternalRequested():
            draft.effects.append(external(state, event))
        case _:
            return
