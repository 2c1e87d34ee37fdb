"""What reaches a run from outside through its inbox, and how it is answered."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.attempts import AttemptOutcome
from durablefuture_trio.history.events import CallerRecord, CarriedSignal, ChildEnd, RequestRecord
from durablefuture_trio.history.options import RetryPolicy

ConflictPolicy = Literal["fail", "use_existing", "terminate_existing"]
ReusePolicy = Literal["allow", "failed_only", "reject"]


class StartRequest(msgspec.Struct, frozen=True, tag="start", kw_only=True, omit_defaults=True):
    """Start a run.

    Attributes:
        execution_deadline: absolute Unix seconds.
        conflict: what to do when a run of this id is open.
        reuse: what to do when a run of this id has closed.
        parent: the call of a workflow that starts this run as its child, and is told what becomes of it.
        not_before: Unix seconds before which the code does not begin.
        signal: the first signal of the run; an open run that is used instead gets it as well.
    """

    workflow_id: str
    workflow: str
    arguments: Payload
    execution_deadline: float | None = None
    memo: Payload | None = None
    conflict: ConflictPolicy = "fail"
    reuse: ReusePolicy = "allow"
    parent: CallerRecord | None = None
    retry_policy: RetryPolicy | None = None
    not_before: float | None = None
    signal: CarriedSignal | None = None


class TerminateRequest(msgspec.Struct, frozen=True, tag="terminate", kw_only=True, omit_defaults=True):
    """End the open run without running its code. ``run_id`` empty: whichever is open.

    Attributes:
        parent: only a run that this call has started (a child whose run id is not known yet).
    """

    workflow_id: str
    run_id: str = ""
    reason: str = ""
    parent: CallerRecord | None = None


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel", kw_only=True, omit_defaults=True):
    """Cancel the root scope of the open run.

    Attributes:
        run_id: empty: whichever is open.
        parent: only a run that this call has started.
        sender: the call of a workflow that is to be told what came of it.
    """

    workflow_id: str
    run_id: str = ""
    reason: str = ""
    parent: CallerRecord | None = None
    sender: CallerRecord | None = None


class SignalRequest(msgspec.Struct, frozen=True, tag="signal", kw_only=True, omit_defaults=True):
    """Send the open run a signal. ``run_id`` empty: whichever is open; ``sender`` as of `CancelRequest`."""

    workflow_id: str
    name: str
    arguments: Payload
    run_id: str = ""
    sender: CallerRecord | None = None


class WatchRequest(msgspec.Struct, frozen=True, tag="watch", kw_only=True, omit_defaults=True):
    """Tell the call of a workflow how a run ends, or has ended. ``run_id`` as of `CancelRequest`, but for a closed run:
    empty is the latest one then."""

    workflow_id: str
    sender: CallerRecord
    run_id: str = ""


class UpdateRequest(msgspec.Struct, frozen=True, tag="update", kw_only=True, omit_defaults=True):
    """Have the open run carry out an update. ``update_id`` counts within the workflow id: the same one runs once."""

    workflow_id: str
    update_id: str
    name: str
    arguments: Payload
    run_id: str = ""


class ChildReport(msgspec.Struct, frozen=True, tag="child", kw_only=True, omit_defaults=True):
    """A child tells the run that started it.

    Attributes:
        workflow_id, run_id, call: the parent's.
        what: ``"started"``, ``"start_failed"``, ``"completed"``, or how it ended without a result.
        child_run_id: of the run that started.
        result, failure: as fits.
    """

    workflow_id: str
    run_id: str
    call: int
    what: Literal["started", "start_failed", "completed"] | ChildEnd
    child_run_id: str = ""
    result: Payload | None = None
    failure: Failure | None = None


class ExternalReport(msgspec.Struct, frozen=True, tag="external", kw_only=True, omit_defaults=True):
    """What came of a request that a workflow sent to another; addressed to the sender.

    Attributes:
        failure: why a signal or a cancel could not be delivered, or how the workflow ended without a result.
        result: of the workflow whose end was waited for.
    """

    workflow_id: str
    run_id: str
    call: int
    failure: Failure | None = None
    result: Payload | None = None


class AttemptReport(msgspec.Struct, frozen=True, tag="outcome", kw_only=True, omit_defaults=True):
    """The outcome of an attempt that ran elsewhere, e.g. on a supervisor that has lost the shard meanwhile."""

    workflow_id: str
    worker: str
    outcome: AttemptOutcome


class TimerFire(msgspec.Struct, frozen=True, tag="timer", kw_only=True, omit_defaults=True):
    """A schedule came due. Identified by the commit that armed it: the server may fire it twice."""

    workflow_id: str
    run_id: str
    n: int
    due: float


Envelope: TypeAlias = (
    StartRequest
    | TerminateRequest
    | CancelRequest
    | SignalRequest
    | WatchRequest
    | UpdateRequest
    | AttemptReport
    | TimerFire
    | ChildReport
    | ExternalReport
)


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """An inbox message as the owner gets it.

    Attributes:
        seq: its sequence in the inbox stream.
        time: when the server stored it, Unix seconds.
        handle: whatever acknowledges it; opaque here.
        request_id, reply: the client's id of the request and the address of the answer; empty for none.
    """

    seq: int
    time: float
    envelope: Envelope
    handle: object
    request_id: str = ""
    reply: str = ""


class QueryRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask a run something without changing it. A core message, stored nowhere: whoever asks
    repeats it until an answer comes. Asked twice it is answered twice, which does no harm.

    The answers (`Answer`): ``"answered"`` with ``result``; ``"failed"`` with the ``failure`` that the handler raised;
    ``"not_found"``; ``"blocked"`` with the reason in ``message``.

    Attributes:
        run_id: empty: the latest run, open or closed.
        reply: the subject of the answer.
    """

    workflow_id: str
    name: str
    arguments: Payload
    request_id: str
    reply: str
    run_id: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The owner's answer to a request, after the commit that decided it.

    Attributes:
        request_id: the request.
        answer: ``"applied"``, or the name of the refusal: ``"existing"`` (an open run was used), ``"already_started"``,
            ``"not_found"``, ``"closed"``, ``"undecodable"``, ``"rejected"`` (an update, by its validator), ``"failed"``
            (an update, by its handler, or by the end of its run), ``"limit"``.
        run_id: the run it was applied to, or that stands in the way.
        message: the words of a refusal.
        result: what the handler of an update returned.
        failure: what its handler or validator raised.
    """

    request_id: str
    answer: str
    run_id: str = ""
    message: str = ""
    result: Payload | None = None
    failure: Failure | None = None


def answer_of(record: RequestRecord) -> Answer:
    """The answer that a remembered decision stands for."""
    return Answer(request_id=record.request_id, answer=record.answer, run_id=record.run_id, message=record.message)
