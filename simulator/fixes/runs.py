"""Fixes in the owner of a run and in what it is made of, each with the switch that takes it out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any

import msgspec

from durablefuture_trio.engine import draft, effects, run_drafting, run_inputs, run_owner, settling
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.decide import decide_timer, needed_wake
from durablefuture_trio.engine.draft import Draft
from durablefuture_trio.engine.mail import Owed
from durablefuture_trio.engine.requests import Inbound, StartRequest, TimerFire
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import Waiting
from durablefuture_trio.engine.settling import Settling
from durablefuture_trio.history.events import WorkflowStarted
from durablefuture_trio.history.state import ActivityPhase, RunState
from durablefuture_trio.sandbox._host import ReplayHost
from simulator.fixes.switch import Fix, Patch, Replacement, nothing, saying

Function = Callable[..., Any]

# --- committing -------------------------------------------------------------------------------------------------------


def _publish_without_waiting(original: Function, self: Any, now: float) -> None:
    """The next number is published while the one before it is still on its way."""
    original(self, now)
    flight = self._flight
    if flight is None or len(flight.parts) > 1:
        return
    self.__dict__.setdefault("_pipeline", deque()).append(flight)
    self._flight = None
    self._tip_n = flight.part.n
    self.state.tip_n = flight.part.n
    self.state.consumed = max(self.state.consumed, self._mark)
    self.state.finished = flight.part.finished


def _committed_of_pipeline(original: Function, self: Any, now: float) -> None:
    pipeline = self.__dict__.get("_pipeline")
    if self._flight is not None or not pipeline:
        original(self, now)
        return
    tip_n, tip_finished = self._tip_n, self.state.finished
    self._flight = pipeline.popleft()
    last, self._advance = self._advance, lambda now: None
    try:
        original(self, now)
    finally:
        del self.__dict__["_advance"]
    self._tip_n = self.state.tip_n = tip_n
    self.state.finished = tip_finished
    last(now)


def _forget_pipeline(original: Function, self: Any) -> None:
    flights = self.__dict__.pop("_pipeline", ())
    original(self)
    again = [item for flight in flights for item in flight.draft.inputs]
    self._inputs.extendleft(reversed(again))


def _effects_before_the_ack(original: Function, self: Any, now: float) -> None:
    original(self, now)
    flight = self._flight
    if flight is not None:
        early, flight.draft.effects = flight.draft.effects, []
        for effect in early:
            if isinstance(effect, out.Dispatch):
                self.live.add(effect.attempt.key)
            if isinstance(effect, Owed):
                self._mail.post(effect)
            else:
                self._out(effect)


def _publish_when_activated(original: Function, self: Any, now: float) -> bool:
    return self._awaits is Waiting.NOBODY


# --- takeover and redelivery ------------------------------------------------------------------------------------------


def _repeat_under_the_same_number(original: Function, self: Any, state: RunState, now: float) -> None:
    for call in state.activities.values():
        if call.phase is ActivityPhase.SCHEDULED:
            self._drafting().effects.append(effects.dispatch(state, call))


def _acknowledge_what_is_in_the_history(original: Function, self: Any, message: Inbound, now: float) -> bool:
    self._inputs.popleft()
    self._anchors.consume(message.seq)
    for handle in self._anchors.release(0):
        self._out(out.Ack(handle))
    return True


def _take_timers_for_armed(original: Function, self: Any, state: RunState | None) -> None:
    original(self, state)
    if state is not None and (needed := needed_wake(state)) is not None:
        self._settling.armed[state.tip_n] = needed


def _take_listing_for_written(original: Function, self: Any, state: RunState, now: float, **circumstances: Any) -> bool:
    original(self, state, now, **circumstances)
    return True


def _keep_listing(original: Function, self: Any, state: RunState | None) -> None:
    """What was recorded when the history was loaded is taken for listed."""
    original(self, state)
    if state is not None:
        status = type(state.terminal).__name__ if state.terminal is not None else "running"
        self._settling._shown = f"{state.run_id}/{status}/"


def _redelivered_without_renewed_listing(original: Function, self: Any, message: Inbound, now: float) -> bool:
    shown = self._settling._shown
    taken = original(self, message, now)
    self._settling._shown = shown
    return bool(taken)


def _redelivered_without_answers(original: Function, self: Any, message: Inbound, now: float) -> bool:
    self._inputs.popleft()
    self._anchors.consume(message.seq)
    self._settling.outdate()
    return True


def _unfinished_is_taken_for_finished(original: Function, self: Any, state: RunState | None) -> None:
    original(self, state)
    self._needs_replay = False


def _resume_first(original: Function, self: Any, now: float, waiting: Any = ()) -> None:
    original(self, now)
    for message in waiting:
        self.delivered(message, now)


# --- requests ---------------------------------------------------------------------------------------------------------


def _start_without_memory(original: Function, self: Any, message: Inbound, request: StartRequest, now: float) -> bool:
    if self.state is not None:
        self.state.requests.clear()
    return bool(original(self, message, request, now))


def _carry_nothing(original: Function, *args: Any) -> WorkflowStarted:
    started: WorkflowStarted = original(*args)
    return msgspec.structs.replace(started, carried=())


def _decline_without_memory(original: Function, self: Any, message: Inbound, record: Any, *args: Any) -> bool:
    remembered = {} if self.state is None else dict(self.state.requests)
    taken = original(self, message, record, *args)
    self._refused.clear()
    if self.state is not None:
        self.state.requests.clear()
        self.state.requests.update(remembered)
    return bool(taken)


def _terminate_raises_the_mark(
    original: Function, self: Any, message: Inbound, request: Any, now: float, *, in_order: bool
) -> None:
    original(self, message, request, now, in_order=True)


def _replace_in_two_commits(original: Function, self: Any, message: Inbound, request: StartRequest, now: float) -> bool:
    state = self.state
    if (
        state is None
        or state.terminal is not None
        or request.conflict != "terminate_existing"
        or message.request_id in state.requests
        or self._starts_run(self._draft)
    ):
        return bool(original(self, message, request, now))
    self._inputs.popleft()
    self._begin_input(message)
    self._record(self._terminated(state, "replaced", "", now))
    self.__dict__["_next_start"] = (message, request)
    return True


def _committed_before_its_successor(original: Function, self: Any, now: float) -> None:
    successor = self.__dict__.pop("_next_start", None)
    if successor is None or self._flight is None:
        original(self, now)
        return
    advance = self._advance
    self._advance = lambda now: None
    try:
        original(self, now)
    finally:
        del self.__dict__["_advance"]
    self._start(*successor, now)
    advance(now)


def _forget_successor(original: Function, self: Any) -> None:
    self.__dict__.pop("_next_start", None)
    original(self)


def _replace_at_once(original: Function, self: Any, message: Inbound, request: StartRequest, now: float) -> bool:
    """A run that is still in the draft is replaced in that same commit."""
    self._starts_run = lambda draft: False
    try:
        return bool(original(self, message, request, now))
    finally:
        del self.__dict__["_starts_run"]


def _step_behind_a_closing_run(original: Function, self: Any, now: float) -> bool:
    """Something that comes behind a terminal event joins its commit."""
    state = self.state
    if (
        state is not None
        and state.terminal is not None
        and self._draft is not None
        and self._flight is None
        and self._awaits is Waiting.NOBODY
    ):
        return bool(self._take_input(now))
    return bool(original(self, now))


# --- sizes ------------------------------------------------------------------------------------------------------------


def _freeze_whole(original: Function, template: Any, events: Any, n: int, limit_bytes: int, new_id: Any) -> Any:
    return original(template, events, n, 2**40, new_id)


def _any_cut_will_do(original: Function, events: Any) -> int:
    return 1


def _as_it_is(original: Function, value: Any, limit_bytes: int) -> Any:
    return value


# --- activities -------------------------------------------------------------------------------------------------------


def _failed_whichever_attempt(
    original: Function, state: RunState, activity_id: int, attempt: int, **others: Any
) -> Any:
    activity = state.activities.get(activity_id)
    current = attempt if activity is None or activity.phase is not ActivityPhase.SCHEDULED else activity.attempt
    return original(state, activity_id, current, **others)


def _completed_only_by_current(
    original: Function, state: RunState, activity_id: int, attempt: int, *args: Any, **others: Any
) -> Any:
    activity = state.activities.get(activity_id)
    return (
        []
        if activity is None or activity.attempt != attempt
        else original(state, activity_id, attempt, *args, **others)
    )


def _outcome_of_whichever_run(original: Function, self: Any, item: Any, outcome: Any, worker: str, now: float) -> bool:
    if self.state is not None and self.state.terminal is None:
        key = msgspec.structs.replace(outcome.key, run_id=self.state.run_id)
        outcome = msgspec.structs.replace(outcome, key=key)
    return bool(original(self, item, outcome, worker, now))


def _close_and_dispatch(original: Function, draft: Draft, *args: Any) -> None:
    dispatches = [effect for effect in draft.effects if isinstance(effect, out.Dispatch)]
    original(draft, *args)
    draft.effects.extend(dispatches)


# --- timers -----------------------------------------------------------------------------------------------------------


def _trust_own_clock(original: Function, self: Any, message: Inbound, fire: TimerFire, now: float) -> bool:
    state = self.state
    if (
        state is None
        or state.terminal is not None
        or state.run_id != fire.run_id
        or decide_timer(state, now) is not None
    ):
        return bool(original(self, message, fire, now))
    self._inputs.popleft()
    self._anchors.consume(message.seq)
    for handle in self._anchors.release(0):
        self._out(out.Ack(handle))
    return True


def _timer_at_own_time(original: Function, state: RunState, now: float) -> Any:
    fired = original(state, now)
    if fired is None:
        return None
    if state.last_event_id > 5000:
        raise RuntimeError(f"the timer of run {state.run_id} fires again and again")
    return msgspec.structs.replace(fired, at=max(state.last_at, fired.deadline - 0.0003))


def _wake_without(source: str) -> Callable[..., Any]:
    def needed(original: Function, state: RunState, *, sandbox: bool = True) -> Any:
        if source == "deadline":
            state = _without_deadline(state)
        if source == "retries":
            in_backoff, state.in_backoff = state.in_backoff, {}
            try:
                return original(state, sandbox=sandbox)
            finally:
                state.in_backoff = in_backoff
        return original(state, sandbox=sandbox and source != "sandbox")

    return needed


def _without_deadline(state: RunState) -> RunState:
    state = copy(state)
    state.started = msgspec.structs.replace(state.started, execution_deadline=None)
    return state


def _plain_time(original: Function, state: RunState, now: float) -> float:
    return now


# --- settling ---------------------------------------------------------------------------------------------------------


def _busy_without_anchor(original: Function, self: Any, wake: float | None) -> None:
    self._release(keep=0)
    self._set_wake(wake)


def _running_without_anchor(original: Function, self: Any, *args: Any, is_live: bool, **others: Any) -> None:
    original(self, *args, is_live=is_live, **others)
    if is_live:
        self._release(keep=0)


def _park_before_it_is_armed(original: Function, self: Any, *args: Any) -> None:
    original(self, *args)
    if self._arming is not None:
        self._release(keep=0)


def _short_timers_without_anchor(original: Function, self: Any, *args: Any, is_live: bool, **others: Any) -> None:
    original(self, *args, is_live=is_live, **others)
    if not is_live and self._wake is not None:
        self._release(keep=0)


def _forget_what_has_fired(original: Function, self: Any, n: int) -> None:
    original(self, n)
    self._spent.discard(n)


def _let_go_before_the_listing(original: Function, self: Any, *args: Any, **others: Any) -> None:
    original(self, *args, **others)
    self._release(keep=0)


def _acknowledge_when_taken(original: Function, self: Any, item: Any, *, in_order: bool = True) -> None:
    original(self, item, in_order=in_order)
    if isinstance(item, Inbound):
        self._anchors.consume(item.seq)
        for handle in self._anchors.release(0):
            self._out(out.Ack(handle))


def _confirmed_by_a_replica(original: Function, self: Any, state: RunState | None) -> None:
    original(self, state)
    self._is_confirmed = True


# --- the sandbox ------------------------------------------------------------------------------------------------------


def _apply_whatever_comes(original: Function, self: Any, frame: Any) -> Any:
    run = self._runs.get(frame.run_id)
    if run is not None:
        run.activations = frame.activation - 1
    return original(self, frame)


def _forget_without_evicting(original: Function, self: Any) -> None:
    state, self.state = self.state, None
    try:
        original(self)
    finally:
        del state


_OWNER = (run_owner, run_inputs, run_drafting)


def _in_owner(name: str, replacement: Replacement) -> tuple[Patch, ...]:
    """A function that the owner of a run calls by its bare name, wherever in the owner that is."""
    users = [module for module in _OWNER if name in vars(module)]
    return tuple(Patch(module, name, replacement) for module in users or [run_owner])


RUN_FIXES: tuple[Fix, ...] = (
    Fix(
        "one commit outstanding",
        "U1",
        "the next number is published before the last one is acknowledged",
        (
            Patch(RunOwner, "_publish", _publish_without_waiting),
            Patch(RunOwner, "committed", _committed_of_pipeline),
            Patch(RunOwner, "_forget", _forget_pipeline),
        ),
    ),
    Fix(
        "commit before effects",
        "U3",
        "attempts are dispatched and clients answered when the commit is published, not when it is acknowledged",
        (Patch(RunOwner, "_publish", _effects_before_the_ack),),
    ),
    Fix(
        "attempts of a dead owner are repeated",
        "H5",
        "a new owner takes over what the history says and repeats no attempt",
        (Patch(RunOwner, "_declare_lost", nothing),),
    ),
    Fix(
        "lost attempts are counted",
        "H8",
        "a new owner dispatches the attempts of a dead one again, under the same number",
        (Patch(RunOwner, "_declare_lost", _repeat_under_the_same_number),),
    ),
    Fix(
        "redelivery means redo",
        "H5",
        "a message that is in the history already is acknowledged on that ground",
        (Patch(RunOwner, "_redelivered", _acknowledge_what_is_in_the_history),),
    ),
    Fix(
        "redo: the schedule",
        "H5",
        "a new owner takes the timer of a parked run for armed",
        (Patch(RunOwner, "_become", _take_timers_for_armed),),
    ),
    Fix(
        "redo: the listing record",
        "H5, H20",
        "a new owner takes the listing record for written",
        (
            Patch(RunOwner, "_become", _keep_listing),
            Patch(RunOwner, "_redelivered", _redelivered_without_renewed_listing),
        ),
    ),
    Fix(
        "redo: answers and close hints",
        "H5",
        "a message that is delivered again is not answered again, nor the close of its run told",
        (Patch(RunOwner, "_redelivered", _redelivered_without_answers),),
    ),
    Fix(
        "redo: the activation",
        "H5, U2",
        "a commit without its activation is taken for finished by whoever loads it",
        (Patch(RunOwner, "_become", _unfinished_is_taken_for_finished),),
    ),
    Fix(
        "what waited is known before a run goes on",
        "H10c, H22",
        "a run that goes on under a new epoch gets what waited in the inbox only then",
        (Patch(RunOwner, "resume", _resume_first),),
    ),
    Fix(
        "the listing record is owed",
        "H5, H20",
        "messages are acknowledged before the listing record of the closed run is written",
        (Patch(Settling, "_show", _take_listing_for_written),),
    ),
    Fix(
        "the consumed mark",
        "H10b",
        "a message is never taken for decided because of its sequence",
        (Patch(RunOwner, "_is_decided", saying(False)),),
    ),
    Fix(
        "request ids",
        "H10a",
        "a start looks at no earlier request",
        (Patch(RunOwner, "_take_start", _start_without_memory),),
    ),
    Fix(
        "requests are carried to the next run",
        "H10a",
        "a new run remembers no request of those before it",
        _in_owner("started_event", _carry_nothing),
    ),
    Fix(
        "refusals are recorded",
        "H10c",
        "a refused request is remembered by nobody",
        (Patch(RunOwner, "_decline", _decline_without_memory),),
    ),
    Fix(
        "starts that wait are refused when the run closes",
        "H10c",
        "a start that waited while a run was open is decided after its close",
        (Patch(RunOwner, "_refuse_waiting_starts", nothing),),
    ),
    Fix(
        "a termination that jumps the queue leaves the mark",
        "H10",
        "a terminate taken before older messages raises the mark above them",
        (Patch(RunOwner, "_terminate", _terminate_raises_the_mark),),
    ),
    Fix(
        "close and next start in one commit",
        "H11d",
        "the end of a replaced run and its successor are two commits",
        (
            Patch(RunOwner, "_take_start", _replace_in_two_commits),
            Patch(RunOwner, "committed", _committed_before_its_successor),
            Patch(RunOwner, "_forget", _forget_successor),
        ),
    ),
    Fix(
        "a run is committed before it is replaced",
        "H11",
        "a run that is still in the draft may end in the first commit of its successor",
        (Patch(RunOwner, "_take_start", _replace_at_once),),
    ),
    Fix(
        "nothing follows a terminal event in its commit",
        "H11a",
        "what comes behind the end of a run joins the commit of that end",
        (Patch(RunOwner, "_step", _step_behind_a_closing_run),),
    ),
    Fix(
        "commits are cut to size",
        "H12",
        "a commit is published whatever its size",
        _in_owner("freeze", _freeze_whole),
    ),
    Fix(
        "a commit is not cut inside a replacement",
        "H11d, H12",
        "the cut may come between the end of a run and its successor's beginning",
        (Patch(draft, "_indivisible_head", _any_cut_will_do),),
    ),
    Fix(
        "values that no message holds are failures",
        "H12",
        "a result is recorded whatever its size",
        _in_owner("fitting_outcome", _as_it_is) + _in_owner("fitting_command", _as_it_is),
    ),
    Fix(
        "twice in a batch",
        "H13",
        "a message that is part of a commit under way is taken again when it is delivered again",
        (Patch(RunOwner, "_is_in_work", saying(False)),),
    ),
    Fix(
        "late failures do not count",
        "M5",
        "the failure of any attempt fails the current one",
        _in_owner("decide_failed", _failed_whichever_attempt),
    ),
    Fix(
        "late successes count",
        "M5",
        "only the current attempt completes a call",
        _in_owner("decide_completed", _completed_only_by_current),
    ),
    Fix(
        "the run id is part of the key",
        "M6",
        "an outcome of any run of the id is taken for the open run's",
        (Patch(RunOwner, "_take_outcome", _outcome_of_whichever_run),),
    ),
    Fix(
        "no dispatch for a closed run",
        "",
        "attempts scheduled by the commit that closes the run are dispatched",
        (Patch(effects, "close", _close_and_dispatch),),
    ),
    Fix(
        "a fire means that the time has come",
        "H21a",
        "a fire that is early by the owner's clock is acknowledged",
        (Patch(RunOwner, "_take_fire", _trust_own_clock),),
    ),
    Fix(
        "a timer's time is its deadline at least",
        "H21b",
        "the event of a timer is stamped a moment before its deadline",
        _in_owner("decide_timer", _timer_at_own_time),
    ),
    Fix(
        "wake-up: the sandbox's deadline",
        "H21d",
        "the next wake-up leaves the timers of the workflow out",
        (Patch(settling, "needed_wake", _wake_without("sandbox")),),
    ),
    Fix(
        "wake-up: retries",
        "H21d",
        "the next wake-up leaves retries out",
        (Patch(settling, "needed_wake", _wake_without("retries")),),
    ),
    Fix(
        "wake-up: the execution deadline",
        "H21d",
        "the next wake-up leaves the execution deadline out",
        (Patch(settling, "needed_wake", _wake_without("deadline")),),
    ),
    Fix(
        "the time of a run never goes back",
        "H21c",
        "events are stamped by the owner's clock alone",
        (Patch(RunOwner, "_time", _plain_time),),
    ),
    Fix(
        "an anchor while something is under way",
        "U4",
        "every message is acknowledged that is consumed, although a commit or an activation is under way",
        (Patch(Settling, "busy", _busy_without_anchor),),
    ),
    Fix(
        "an anchor while attempts run",
        "U4",
        "the last message is acknowledged although attempts run",
        (Patch(Settling, "running", _running_without_anchor),),
    ),
    Fix(
        "an anchor for short timers",
        "U4",
        "the last message is acknowledged although a short timer runs here only",
        (Patch(Settling, "running", _short_timers_without_anchor),),
    ),
    Fix(
        "parked only when armed",
        "U3, H21d",
        "the last message is acknowledged before the schedule is stored",
        (Patch(Settling, "_park", _park_before_it_is_armed),),
    ),
    Fix(
        "a spent schedule subject is not used again",
        "H2",
        "a schedule is armed under the number of one that has fired already",
        (Patch(Settling, "fired", _forget_what_has_fired),),
    ),
    Fix(
        "acknowledged last: the end of a run",
        "U3",
        "the last message of a closed run is acknowledged before the listing record is stored",
        (Patch(Settling, "closed", _let_go_before_the_listing),),
    ),
    Fix(
        "acknowledged after the commit",
        "U3",
        "a message is acknowledged as soon as it is taken",
        (Patch(RunOwner, "_begin_input", _acknowledge_when_taken),),
    ),
    Fix(
        "confirmed reads before acknowledgements",
        "H16",
        "what was read from a replica is taken for the truth",
        (Patch(RunOwner, "_become", _confirmed_by_a_replica),),
    ),
    Fix(
        "activation numbers",
        "M2",
        "a sandbox that is ahead of the history applies the next stimulus on top",
        (Patch(ReplayHost, "_activate", _apply_whatever_comes),),
    ),
    Fix(
        "a lost commit drops the sandbox's copy",
        "M2",
        "the sandbox keeps what it applied for a commit that was lost",
        (Patch(RunOwner, "_forget", _forget_without_evicting),),
    ),
    Fix(
        "a cancelled call in backoff is answered",
        "",
        "a call that was cancelled between two attempts waits for the next one, which never comes",
        _in_owner("cancelled_in_backoff", saying(None)),
    ),
    Fix(
        "a slow start is committed ahead",
        "M12",
        "a start is committed together with its first activation, never before",
        (
            Patch(RunOwner, "_may_publish", _publish_when_activated),
            Patch(RunOwner, "_slow_start_wake", saying(None)),
        ),
    ),
)
