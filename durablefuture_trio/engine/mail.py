"""What a run owes other workflows: starts, signals and cancels, and reports to those who wait for it.

Everything is a message to an inbox, sent after the commit that calls for it and as often as it takes until the server
has stored it. Each has a request id made of the call that asked for it, so that a repetition is never applied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.requests import (
    Answer,
    CancelRequest,
    ChildReport,
    ExternalReport,
    Inbound,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    WatchRequest,
)
from durablefuture_trio.history.events import (
    CallerRecord,
    ChildInitiated,
    ContinuedAsNew,
    ExternalRequested,
    HistoryLimitExceeded,
    ReleasedChild,
    Terminal,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from durablefuture_trio.history.state import ChildState, RunState

Letter: TypeAlias = (
    StartRequest | TerminateRequest | CancelRequest | SignalRequest | WatchRequest | ChildReport | ExternalReport
)

NO_ARGUMENTS = Payload(b"[]")


class Owed(msgspec.Struct, frozen=True):
    """A message to another workflow's inbox.

    Attributes:
        key: what it is about; the same for a repetition.
        after: the key of a message that has to be stored first.
        holds: the inbox message that is consumed when this one is stored; 0: none.
    """

    key: str
    letter: Letter
    request_id: str = ""
    after: str = ""
    holds: int = 0


class Mail:
    """The messages of one owner that the server has not confirmed yet.

    Args:
        outputs: where `Send` goes.
    """

    def __init__(self, outputs: Callable[[out.Output], None]) -> None:
        self._out = outputs
        self._unsent: dict[str, list[int]] = {}
        self._waiting: list[Owed] = []
        self._sends: dict[str, out.Send] = {}

    def __bool__(self) -> bool:
        return bool(self._unsent or self._waiting)

    def post(self, owed: Owed) -> None:
        """Have a message sent, unless it is under way."""
        if owed.after in self._unsent:
            self._waiting.append(owed)
            return
        held = [owed.holds] if owed.holds else []
        if owed.key in self._unsent:
            self._unsent[owed.key] += held
            return
        self._unsent[owed.key] = held
        self._sends[owed.key] = out.Send(owed.key, owed.letter, owed.request_id)
        self._out(self._sends[owed.key])

    def awaits(self, send: out.Send) -> bool:
        """Whether this very message is not known to be stored yet, and was not forgotten meanwhile."""
        return self._sends.get(send.key) is send

    def stored(self, key: str) -> list[int]:
        """The server has a message; the inbox messages it held."""
        held = self._unsent.pop(key, [])
        self._sends.pop(key, None)
        waiting, self._waiting = self._waiting, []
        for owed in waiting:
            self.post(owed)
        return held

    def clear(self) -> None:
        """Forget everything: it will be worked out again from the history."""
        self._unsent.clear()
        self._sends.clear()
        self._waiting.clear()


# --- what a state owes ------------------------------------------------------------------------------------------------


def owed_by(state: RunState) -> Iterator[Owed]:
    """Every message that the history calls for and does not show to be superfluous."""
    started = state.started
    for child in started.released:
        yield from _release(child)
    replaced = WorkflowTerminated(id=0, at=0.0, reason=replaced_words(state.workflow_id))
    if started.replaced_child_of is not None:
        yield from _end_report(started.replaced_child_of, f"before {state.run_id}", replaced)
    for watcher in started.replaced_watchers:
        yield from _told(state.workflow_id, watcher, replaced)
    if state.terminal is not None:
        yield from end_of(state, state.terminal)
        return
    if started.parent is not None:
        yield started_report(started.parent, started.chain_id)
    for child_state in state.children.values():
        if not child_state.run_id:
            yield child_start(caller(state, child_state.initiated.call), child_state.initiated)
        if child_state.cancel_requested:
            yield child_cancel(state, child_state)
    for request in state.externals.values():
        yield external(state, request)


def child_start(parent: CallerRecord, initiated: ChildInitiated) -> Owed:
    """The start of a child."""
    timeout = initiated.execution_timeout
    request = StartRequest(
        workflow_id=initiated.workflow_id,
        workflow=initiated.workflow,
        arguments=initiated.arguments,
        execution_deadline=None if timeout is None else initiated.at + timeout,
        memo=initiated.memo,
        parent=parent,
        retry_policy=initiated.retry_policy,
    )
    return Owed(f"child/{parent.run_id}/{parent.call}", request, f"{parent.run_id}/{parent.call}")


def child_cancel(state: RunState, child: ChildState) -> Owed:
    """The cancel of a child: behind its start."""
    call = child.initiated.call
    parent = caller(state, call)
    request = CancelRequest(
        workflow_id=child.initiated.workflow_id, reason=f"cancelled by its parent {state.workflow_id!r}", parent=parent
    )
    about = f"{state.run_id}/{call}"
    return Owed(f"cancel/{about}", request, f"{about}/cancel", after=f"child/{about}")


def external(state: RunState, request: ExternalRequested) -> Owed:
    """A request to another workflow."""
    sender = caller(state, request.call)
    workflow_id, run_id = request.workflow_id, request.run_id
    letter: Letter
    match request.kind:
        case "signal":
            arguments = request.arguments or NO_ARGUMENTS
            letter = SignalRequest(
                workflow_id=workflow_id, run_id=run_id, name=request.name, arguments=arguments, sender=sender
            )
        case "cancel":
            letter = CancelRequest(workflow_id=workflow_id, run_id=run_id, reason=request.reason, sender=sender)
        case "result":
            letter = WatchRequest(workflow_id=workflow_id, run_id=run_id, sender=sender)
    about = f"{state.run_id}/{request.call}"
    return Owed(f"external/{about}", letter, about)


def caller(state: RunState, call: int) -> CallerRecord:
    """A call of this run, as other workflows know it."""
    return CallerRecord(state.workflow_id, state.run_id, call)


def released_children(state: RunState) -> tuple[ReleasedChild, ...]:
    """The open children of a run that ends, but for those that go on by themselves."""
    return tuple(
        ReleasedChild(caller(state, call), child.initiated, bool(child.run_id))
        for call, child in state.children.items()
        if child.initiated.parent_close != "abandon" or not child.run_id
    )


def end_of(state: RunState, terminal: Terminal) -> Iterator[Owed]:
    """What is owed when a run has ended: a word to its parent and to who waits for it, and the end of its children."""
    if state.started.parent is not None:
        yield from _end_report(state.started.parent, state.run_id, terminal, state.started.chain_id)
    for watcher in state.watchers:
        yield from _told(state.workflow_id, watcher, terminal)
    for child in released_children(state):
        yield from _release(child)


def _release(child: ReleasedChild) -> Iterator[Owed]:
    parent, initiated = child.parent, child.initiated
    about, workflow_id = f"{parent.run_id}/{parent.call}", initiated.workflow_id
    if not child.has_started:  # what was never started could not be ended
        yield child_start(parent, initiated)
    reason = f"its parent {parent.workflow_id!r} has ended"
    letter: Letter
    match initiated.parent_close:
        case "abandon":
            return
        case "terminate":
            letter = TerminateRequest(workflow_id=workflow_id, reason=reason, parent=parent)
        case "cancel":
            letter = CancelRequest(workflow_id=workflow_id, reason=reason, parent=parent)
    yield Owed(f"release/{about}", letter, f"{about}/{initiated.parent_close}", after=f"child/{about}")


def started_report(parent: CallerRecord, run_id: str) -> Owed:
    """The child's word that it has started."""
    return Owed(f"started/{run_id}", _report(parent, what="started", child_run_id=run_id))


def _end_report(parent: CallerRecord, run_id: str, terminal: Terminal, first_run_id: str = "") -> Iterator[Owed]:
    report = partial(_report, parent, child_run_id=first_run_id)
    key = f"ended/{run_id}"
    match terminal:
        case WorkflowCompleted():
            yield Owed(key, report(what="completed", result=terminal.result))
        case ContinuedAsNew():
            return
        case WorkflowFailed(next_run_id=next_run_id):
            if not next_run_id:
                yield Owed(key, report(what="failed", failure=terminal.failure))
        case WorkflowCancelled():
            failure = Failure(type="WorkflowCancelledError", message=terminal.reason or "the workflow was cancelled")
            yield Owed(key, report(what="cancelled", failure=failure))
        case WorkflowTerminated():
            words = terminal.reason or "the workflow was terminated"
            failure = Failure(type="WorkflowTerminatedError", message=words)
            yield Owed(key, report(what="terminated", failure=failure))
        case WorkflowTimedOut():
            failure = Failure(type="WorkflowTimedOutError", message="still open at its execution deadline")
            yield Owed(key, report(what="timed_out", failure=failure))
        case HistoryLimitExceeded():
            failure = Failure(type="HistoryLimitExceeded", message=f"its history has over {terminal.limit} events")
            yield Owed(key, report(what="failed", failure=failure))


def replaced_words(workflow_id: str) -> str:
    """Why a run ended in whose place a new one was started."""
    return f"replaced by a new run of workflow id {workflow_id!r}"


def _told(workflow_id: str, watcher: CallerRecord, terminal: Terminal) -> Iterator[Owed]:
    if (letter := _end_of_other(workflow_id, watcher, terminal)) is not None:
        yield Owed(f"told/{watcher.run_id}/{watcher.call}", letter)


def _end_of_other(workflow_id: str, watcher: CallerRecord, terminal: Terminal) -> ExternalReport | None:
    """The end of a workflow, for a call that waits for it; None: it goes on in another run. The words name the
    workflow; the ids of the error are filled in by the caller, who knows which run it meant."""
    result: Payload | None = None
    failure: Failure | None = None
    who = f"workflow {workflow_id!r}"
    match terminal:
        case WorkflowCompleted():
            result = terminal.result
        case ContinuedAsNew():
            return None
        case WorkflowFailed(next_run_id=next_run_id, failure=cause):
            if next_run_id:
                return None
            words = f"{who} failed: {cause.type}: {cause.message}"
            failure = Failure(type="WorkflowFailedError", message=words, cause=cause)
        case WorkflowCancelled(reason=reason):
            words = f"{who} was cancelled: {reason or 'no reason was given'}"
            failure = Failure(type="WorkflowCancelledError", message=words, info={"reason": reason})
        case WorkflowTerminated(reason=reason):
            words = f"{who} was terminated: {reason or 'no reason was given'}"
            failure = Failure(type="WorkflowTerminatedError", message=words, info={"reason": reason})
        case WorkflowTimedOut():
            failure = Failure(type="WorkflowTimedOutError", message=f"{who} was still open at its execution deadline")
        case HistoryLimitExceeded(limit=limit):
            words = f"{who} was ended because its history has more than {limit} events"
            failure = Failure(type="WorkflowFailedError", message=words)
    return ExternalReport(
        workflow_id=watcher.workflow_id, run_id=watcher.run_id, call=watcher.call, failure=failure, result=result
    )


def _report(
    parent: CallerRecord,
    *,
    what: str,
    child_run_id: str = "",
    result: Payload | None = None,
    failure: Failure | None = None,
) -> ChildReport:
    return ChildReport(
        workflow_id=parent.workflow_id,
        run_id=parent.run_id,
        call=parent.call,
        what=what,  # type: ignore[arg-type]  # the words are those of the annotation
        child_run_id=child_run_id,
        result=result,
        failure=failure,
    )


# --- answers to workflows ---------------------------------------------------------------------------------------------


def is_from_workflow(message: Inbound) -> bool:
    """Whether a workflow has sent it and waits for the answer."""
    match message.envelope:
        case WatchRequest():
            return True
        case StartRequest(parent=asker) | SignalRequest(sender=asker) | CancelRequest(sender=asker):
            return asker is not None
        case _:
            return False


def answer_to_workflow(message: Inbound, answer: Answer) -> Owed | None:
    """The answer to a request that a workflow has sent; None: it was a client's, or waits for none."""
    match message.envelope:
        case StartRequest(parent=CallerRecord() as parent):
            if answer.answer == "applied":
                return msgspec.structs.replace(started_report(parent, answer.run_id), holds=message.seq)
            failure = Failure(type="WorkflowAlreadyStartedError", message=answer.message or answer.answer)
            report = _report(parent, what="start_failed", failure=failure)
            return Owed(f"answer/{message.seq}", report, holds=message.seq)
        case (
            SignalRequest(sender=CallerRecord() as sender)
            | CancelRequest(sender=CallerRecord() as sender)
            | WatchRequest(sender=sender)
        ):
            failed = None
            if answer.answer != "applied":
                kind = "RequestFailedError" if answer.answer == "limit" else "WorkflowNotFoundError"
                failed = Failure(type=kind, message=answer.message or answer.answer)
            letter = ExternalReport(
                workflow_id=sender.workflow_id, run_id=sender.run_id, call=sender.call, failure=failed
            )
            return Owed(f"answer/{message.seq}", letter, holds=message.seq)
        case _:
            return None


def is_done_when_committed(message: Inbound) -> bool:
    """Whether nothing of a message is left to do once what it led to is committed: the answer to a workflow is in no
    history, but the end of a run is owed to everybody who watches it."""
    return isinstance(message.envelope, WatchRequest) or not is_from_workflow(message)


def end_answer(message: Inbound, watcher: CallerRecord, state: RunState) -> Owed:
    """The answer to somebody who waits for the end of a run that has closed, and is the latest one of its id."""
    assert state.terminal is not None
    letter = _end_of_other(state.workflow_id, watcher, state.terminal)
    assert letter is not None  # a run that goes on in another one is not the latest
    return Owed(f"answer/{message.seq}", letter, holds=message.seq)
