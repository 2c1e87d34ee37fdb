"""The durable calls of one run: from the call in workflow code to its recorded outcome.

An awaited call blocks its task in ``wait_task_rescheduled``; the outcome's stimulus reschedules it. Cancelling follows
Trio's own rule for threads: the cancel is recorded and the outcome awaited; what came anyway is given to the caller,
who meets `trio.Cancelled` at the next checkpoint. A submitted call belongs to the run and settles its futures. A call
that is cancelled in the activation that made it never happened: nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

from durablefuture_trio.authoring._children import ChildStart
from durablefuture_trio.authoring._futures import Countdown, DurableCall, fresh
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.commands import RequestExternal, ScheduleActivity, StartChild
from durablefuture_trio.errors import LimitExceededError, NondeterminismError
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    ChildStartFailed,
    ExternalKind,
    ExternalResolved,
)
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._call_kinds import (
    ActivityCall,
    Call,
    ChildWorkflowCall,
    ExternalCall,
    RaiseCancel,
    Settlement,
    says_nothing,
)
from durablefuture_trio.sandbox._sources import source_here, source_of_task

MAX_PENDING_ACTIVITIES = 20_000
MAX_PENDING_CHILDREN = 2_000
MAX_PENDING_REQUESTS = 2_000
"""Calls of a run that may be open at once; each is kept in the memory of its owner and of the replay process."""

MAX_WAIT_AT_END_S = 60.0
"""How long the end of a run waits for the activities it has cancelled: beyond their grace period, after which they are
killed, only a lost worker needs longer."""

CallStimulus = (
    ActivityCompleted
    | ActivityFailed
    | ActivityCancelled
    | ChildStarted
    | ChildStartFailed
    | ChildCompleted
    | ChildFailed
    | ExternalResolved
)

C = TypeVar("C", bound=Call)


class DurableCalls:
    """The open calls of a run.

    Args:
        reschedule: lets a waiting task go on, see `TrioDriver.reschedule`.
        asked: takes the commands.
    """

    def __init__(
        self, reschedule: Callable[[trio.lowlevel.Task, outcome.Outcome[Any]], None], asked: AskedCommands
    ) -> None:
        self._reschedule = reschedule
        self._asked = asked
        self._activities: dict[int, ActivityCall] = {}
        self._children: dict[int, ChildWorkflowCall] = {}
        self._requests: dict[int, ExternalCall] = {}
        self._made = 0
        self._settled = 0
        self._abandoned: set[int] = set()

    @property
    def made(self) -> int:
        """How many calls the run has made so far: the number of the last one."""
        return self._made

    # --- making calls -------------------------------------------------------------------------------------------------

    def activity(self, name: str, arguments: Payload, options: ActivityOptionsRecord, result_type: Any) -> ActivityCall:
        """Schedule an activity.

        Raises:
            LimitExceededError: too many are open.
        """
        _check_limit(len(self._activities) + len(self._abandoned), MAX_PENDING_ACTIVITIES, "activity calls")
        number, source = self._next()
        call = ActivityCall(self, number, name, result_type, source, abandon=options.abandon_on_cancel)
        self._activities[number] = call
        self._asked.add_call(
            number,
            ScheduleActivity(call=number, name=name, arguments=arguments, options=options, source=source),
        )
        return call

    def child(self, start: ChildStart, default_id: Callable[[int], str]) -> ChildWorkflowCall:
        """Start a child workflow.

        Args:
            default_id: makes its id from the number of the call, when it was not given one.

        Raises:
            LimitExceededError: too many are open.
        """
        _check_limit(len(self._children), MAX_PENDING_CHILDREN, "child workflows")
        number, source = self._next()
        target = start.target
        workflow_id = start.workflow_id or default_id(number)
        call = ChildWorkflowCall(self, number, target.name, target.result_type, source, workflow_id=workflow_id)
        self._children[number] = call
        command = StartChild(
            call=number,
            workflow_id=workflow_id,
            workflow=target.name,
            arguments=target.arguments,
            parent_close=start.parent_close,
            execution_timeout=start.execution_timeout,
            retry_policy=start.retry_policy,
            memo=start.memo,
            source=source,
        )
        self._asked.add_call(number, command)
        return call

    def external(
        self,
        kind: ExternalKind,
        workflow_id: str,
        run_id: str,
        *,
        name: str = "",
        arguments: Payload | None = None,
        reason: str = "",
        result_type: Any = None,
    ) -> ExternalCall:
        """Send a signal or a cancel to another workflow, or wait for its end.

        Args:
            result_type: what its result is rebuilt as.

        Raises:
            LimitExceededError: too many are open.
        """
        _check_limit(len(self._requests), MAX_PENDING_REQUESTS, "requests to other workflows")
        number, source = self._next()
        what = f"result of {workflow_id}" if kind == "result" else f"{kind} {name}".strip() + f" for {workflow_id}"
        call = ExternalCall(self, number, what, result_type, source, workflow_id=workflow_id, run_id=run_id)
        self._requests[number] = call
        command = RequestExternal(
            call=number,
            kind=kind,
            workflow_id=workflow_id,
            run_id=run_id,
            name=name,
            arguments=arguments,
            reason=reason,
            source=source,
        )
        self._asked.add_call(number, command)
        return call

    def _next(self) -> tuple[int, str]:
        self._made += 1
        return self._made, source_here(3) or source_of_task(trio.lowlevel.current_task())

    async def awaited(self, call: Call) -> Any:
        """Wait for a call that nobody else has.

        Raises:
            ActivityError, ChildWorkflowError: it failed for good.
            trio.Cancelled: the caller was cancelled, and the call with it.
        """
        call.task = trio.lowlevel.current_task()

        def abort(raise_cancel: RaiseCancel) -> trio.lowlevel.Abort:
            return self._abort(call, raise_cancel)

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def forget(self) -> None:
        """Let go of everything: the run has ended."""
        for opened in (self._activities, self._children, self._requests):
            opened.clear()

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def settle(self, stimulus: CallStimulus) -> None:
        """Give a recorded outcome to those who wait for it.

        Raises:
            NondeterminismError: this code never made the call.
            RunBlockedError: the result cannot be rebuilt as the annotation says.
        """
        match stimulus:
            case ActivityCompleted() | ActivityFailed() | ActivityCancelled():
                activity = self._take(self._activities, stimulus.activity_id, stimulus.id, "activity")
                if activity is not None:
                    self._settle(activity, activity.settlement(stimulus))
            case ChildStarted():
                started = self._children.get(stimulus.call)
                if started is not None and not started.run_id:
                    started.run_id = stimulus.run_id
                    self._settle(started.start, (stimulus.run_id, None))
                elif started is None:
                    raise _not_open("child", stimulus.call, stimulus.id)
            case ChildStartFailed() | ChildCompleted() | ChildFailed():
                child = self._take(self._children, stimulus.call, stimulus.id, "child")
                if child is not None:
                    if not isinstance(stimulus, ChildStartFailed):
                        child.run_id = child.run_id or stimulus.run_id
                    self._settle_child(child, child.settlement(stimulus))
            case ExternalResolved():
                request = self._take(self._requests, stimulus.call, stimulus.id, "external")
                if request is not None:
                    self._settle(request, request.settlement(stimulus))

    def _take(self, opened: dict[int, C], number: int, event_id: int, what: str) -> C | None:
        call = opened.pop(number, None)
        if call is None:
            if number not in self._abandoned:
                raise _not_open(what, number, event_id)
            self._abandoned.discard(number)
        return call

    def _settle(self, call: Call, settlement: Settlement) -> None:
        if call.task is None:
            self._settled += 1
            call.settle(*settlement, self._settled)
        else:
            self._reschedule(call.task, _outcome_of(call, settlement))

    def _settle_child(self, child: ChildWorkflowCall, settlement: Settlement) -> None:
        if not child.start.place:
            # Who waits for the start of a child that has ended without one is told so. (Its end may be heard of first.)
            error = None if child.run_id else settlement[1]
            self._settle(child.start, (child.run_id, None if error is None else fresh(error)))
        self._settle(child, settlement)

    def wake(self, task: trio.lowlevel.Task) -> None:
        """Let a task go on that waits for futures."""
        self._reschedule(task, outcome.Value(None))

    # --- cancelling ---------------------------------------------------------------------------------------------------

    def cancel(self, call: Call) -> None:
        """Ask for the end of a submitted call; it is done at once if nothing of it is recorded or it is abandoned."""
        if call.place or call.cancelling:
            return
        call.cancelling = True
        if not self._withdraw(call):
            self._ask_for_end(call)
            if not call.abandon:
                return
            self._abandon(call)
        error = call.cancelled_error()
        if isinstance(call, ChildWorkflowCall):
            self._settle_child(call, (None, error))
        else:
            self._settle(call, (None, error))

    def _abort(self, call: Call, raise_cancel: RaiseCancel) -> trio.lowlevel.Abort:
        if self._withdraw(call):
            return trio.lowlevel.Abort.SUCCEEDED
        self._ask_for_end(call)
        if call.abandon:
            self._abandon(call)
            return trio.lowlevel.Abort.SUCCEEDED
        call.raise_cancel = raise_cancel
        return trio.lowlevel.Abort.FAILED

    def _withdraw(self, call: Call) -> bool:
        """Whether nothing of the call is recorded yet: then it never happened."""
        if not self._asked.take_back(call.number):
            return False
        self._close(call)
        return True

    def _ask_for_end(self, call: Call) -> None:
        command = call.cancel_command()
        if command is not None:
            self._asked.cancel(call.number, command)

    def _abandon(self, call: Call) -> None:
        self._close(call)
        self._abandoned.add(call.number)

    def _close(self, call: Call) -> None:
        for opened in (self._activities, self._children, self._requests):
            if opened.pop(call.number, None) is not None:
                return

    async def end_submitted(self) -> None:
        """Before the run ends: cancel the activities that were submitted and are still open, and wait for them, up to
        `MAX_WAIT_AT_END_S` of workflow time. Children are their owner's business, see ``parent_close``."""
        submitted = [call for call in self._activities.values() if call.task is None]
        for call in submitted:
            self.cancel(call)
        still_open: list[DurableCall] = [call for call in submitted if not call.place]
        if still_open:
            with trio.move_on_after(MAX_WAIT_AT_END_S, shield=True):
                await Countdown(still_open).sleep()


def _outcome_of(call: Call, settlement: Settlement) -> outcome.Outcome[Any]:
    value, error = settlement
    if call.raise_cancel is not None and says_nothing(error):
        # Not kept in a variable: the traceback of a Cancelled leads back here, and round in circles.
        return outcome.capture(call.raise_cancel)
    return outcome.Value(value) if error is None else outcome.Error(error)


def _check_limit(pending: int, limit: int, what: str) -> None:
    if pending >= limit:
        raise LimitExceededError(
            f"this run already waits for {pending} {what}, and {limit} is the limit: wait for some of them before "
            "making more (durable_map does that, with its concurrency), or split the work over child workflows",
            limit=limit,
        )


def _not_open(what: str, number: int, event_id: int) -> NondeterminismError:
    return NondeterminismError(
        f"event {event_id} is the outcome of {what} call {number}, which is not open in this code. "
        "The workflow code differs from the code that wrote this history: run that code.",
        recorded=f"outcome of {what} call {number}",
        produced="",
        source="",
    )
