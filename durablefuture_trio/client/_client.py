"""The client of a namespace, over any broker."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import trio

from durablefuture_trio._ids import check_workflow_id, new_id
from durablefuture_trio.client._closing import CloseHints, Closings
from durablefuture_trio.client._core import Core
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.client._listing import Listing
from durablefuture_trio.client._messages import first_signal
from durablefuture_trio.client._outcome import result_of
from durablefuture_trio.client._reading import persistently
from durablefuture_trio.client._records import WorkflowDescription
from durablefuture_trio.client._requests import Requests
from durablefuture_trio.client._status import NamespaceStatus, namespace_status
from durablefuture_trio.client._targets import HasRun, Target, result_type_of, target_of
from durablefuture_trio.codec import encode_value
from durablefuture_trio.engine.requests import ConflictPolicy, ReusePolicy
from durablefuture_trio.errors import RequestFailedError, WorkflowAlreadyStartedError
from durablefuture_trio.history.options import RetryPolicy, seconds
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.envelope import StartRequest
from durablefuture_trio.protocol.loading import HistoryReader
from durablefuture_trio.protocol.projection import Status
from durablefuture_trio.protocol.subjects import Subjects

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_CONFLICT_POLICIES: tuple[ConflictPolicy, ...] = ("fail", "use_existing", "terminate_existing")
_REUSE_POLICIES: tuple[ReusePolicy, ...] = ("allow", "failed_only", "reject")


class StartOptions(TypedDict, total=False):
    """How a workflow is started.

    Attributes:
        id: the workflow id, the name under which it is found again; default: a fresh random one.
        id_conflict_policy: when a run of this id is open: ``"fail"`` (default) refuses, ``"use_existing"`` gives a
            handle on it, ``"terminate_existing"`` ends it in the same step that starts the new one.
        id_reuse_policy: when a run of this id has closed: ``"allow"`` (default) another one, ``"failed_only"`` unless
            it completed, ``"reject"`` never.
        execution_timeout: seconds (or a timedelta) after which a workflow that is still open times out, counted from
            when it may begin; default: never.
        start_delay: seconds (or a timedelta) before its code begins; the start itself is recorded at once.
        start_signal: a signal and a tuple of its arguments, given to the run together with its start. With
            ``id_conflict_policy="use_existing"`` an open run gets it.
        retry_policy: how a workflow that failed is started again; default: not at all.
        memo: a value shown in listings and descriptions.
        request_id: the same id makes a repetition of this very start harmless, even from another process: it is
            answered with the run that was started the first time. Default: a fresh one for each call.
    """

    id: str | None
    id_conflict_policy: ConflictPolicy
    id_reuse_policy: ReusePolicy
    execution_timeout: float | timedelta | None
    start_delay: float | timedelta | None
    start_signal: tuple[Any, Sequence[Any]] | None
    retry_policy: RetryPolicy | None
    memo: object
    request_id: str | None


class Client:
    """Starts workflows and finds them again. Made by `connect`, or by `open_client` over a broker that is open already.

    Every call waits as long as its cancel scope allows: use ``trio.move_on_after`` or ``trio.fail_after``. A start that
    was cancelled while waiting may have been stored, and then happens.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def __repr__(self) -> str:
        return f"<Client of namespace {self.namespace!r}>"

    @property
    def namespace(self) -> str:
        """The namespace this client works in."""
        return self._core.subjects.namespace

    @overload
    async def start(
        self, wf: Callable[[*Ts], Awaitable[R]], *args: *Ts, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self, wf: Callable[[], HasRun[*Ts, R]], *args: *Ts, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self, wf: str, *args: Any, result_type: type[R], **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self, wf: str, *args: Any, result_type: Any = ..., **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]: ...
    async def start(  # type: ignore[misc]  # mypy does not accept *args: Any as an implementation of *args: *Ts
        self, wf: Any, *args: Any, result_type: Any = Any, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]:
        """Start a workflow; returns once its start is recorded.

        Args:
            wf: a ``@workflow`` function or class, or the name of one.
            args: its arguments, by position.
            result_type: what the result is rebuilt as, when `wf` is a name.
            options: see `StartOptions`.

        Raises:
            TypeError: `wf` is no workflow, or the arguments do not fit its signature; nothing was sent.
            ValueError: the id, a time or a policy cannot be used; nothing was sent.
            PayloadError: an argument cannot be encoded, or they are too large; nothing was sent.
            WorkflowAlreadyStartedError: the policies forbid another run of the id.
            RequestFailedError: the server has no room, or the owner of the id could not carry out the request.
            BrokerUnavailableError: the server refuses to store the request.
        """
        _check_options(options)
        target = target_of(wf, args, result_type)
        workflow_id, request, request_id = self._start_request(target, options)
        run_id = await self._request_start(request, request_id)
        return WorkflowHandle(self._core, workflow_id, run_id, target.result_type)

    @overload
    async def run(self, wf: Callable[[*Ts], Awaitable[R]], *args: *Ts, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self, wf: Callable[[], HasRun[*Ts, R]], *args: *Ts, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self, wf: str, *args: Any, result_type: type[R], **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self, wf: str, *args: Any, result_type: Any = ..., **options: Unpack[StartOptions]) -> Any: ...
    async def run(  # type: ignore[misc]  # as for start
        self, wf: Any, *args: Any, result_type: Any = Any, **options: Unpack[StartOptions]
    ) -> Any:
        """Start a workflow and wait for its result: `start` and `WorkflowHandle.result` in one, and cheaper.

        Raises:
            whatever those two raise.
        """
        _check_options(options)
        target = target_of(wf, args, result_type)
        workflow_id, request, request_id = self._start_request(target, options)
        # Subscribed before the start is sent: whenever the run closes, the hint comes and no history has to be read.
        async with self._core.closings.watch(workflow_id) as waiter:
            run_id = await self._request_start(request, request_id)
            # A start repeated under its request id may be answered with a run that closed long ago.
            repeated = options.get("request_id") is not None
            closing = await self._core.closings.told_to(waiter, workflow_id, run_id, look_first=repeated)
        return result_of(workflow_id, closing, target.result_type)

    @overload
    def handle(self, id: str, wf: Callable[..., Awaitable[R]], *, run_id: str | None = None) -> WorkflowHandle[R]: ...
    @overload
    def handle(self, id: str, wf: Callable[[], HasRun[*Ts, R]], *, run_id: str | None = None) -> WorkflowHandle[R]: ...
    @overload
    def handle(
        self, id: str, wf: str | None = None, *, run_id: str | None = None, result_type: type[R]
    ) -> WorkflowHandle[R]: ...
    @overload
    def handle(
        self, id: str, wf: str | None = None, *, run_id: str | None = None, result_type: Any = ...
    ) -> WorkflowHandle[Any]: ...
    def handle(
        self,
        id: str,  # noqa: A002 - pinned by the public API
        wf: Any = None,
        *,
        run_id: str | None = None,
        result_type: Any = Any,
    ) -> WorkflowHandle[Any]:
        """A handle on a workflow that was started before. Asks nobody: whether it exists shows when it is used.

        Args:
            id: the workflow id.
            wf: the workflow function or class, for the type of the result; its name is as good as nothing.
            run_id: one run of the id; default: the latest, at each call.
            result_type: what the result is rebuilt as, without `wf`.

        Raises:
            TypeError: `wf` is no workflow. ValueError: the id cannot be one.
        """
        check_workflow_id(id)
        return WorkflowHandle(self._core, id, run_id, result_type_of(wf, result_type))

    def list(
        self, *, status: Status | Collection[Status] | None = None, workflow: str | None = None
    ) -> AsyncIterator[WorkflowDescription]:
        """The latest run of each workflow id, in the order of their last change of status, oldest first.

        A listing is a view that follows the histories at a short distance. A workflow whose status changes meanwhile is
        shown once, as it was or as it is.

        Args:
            status: only these, e.g. ``"running"`` or ``("failed", "timed_out")``.
            workflow: only those of this name.

        Raises:
            BrokerUnavailableError: the server refuses to be read.
        """
        wanted = None if status is None else frozenset((status,) if isinstance(status, str) else status)
        return Listing(self._core.broker, self._core.subjects, wanted, workflow)

    async def status(self) -> NamespaceStatus:
        """Who owns the shards of the namespace, and how much is waiting.

        Raises:
            BrokerUnavailableError: the server refuses to be read.
        """
        core = self._core
        return await persistently(
            f"namespace {self.namespace!r}", partial(namespace_status, core.broker, core.subjects)
        )

    def _start_request(self, target: Target, options: StartOptions) -> tuple[str, StartRequest, str]:
        workflow_id = options.get("id")
        if workflow_id is None:
            workflow_id = new_id()
        check_workflow_id(workflow_id)
        conflict, reuse = options.get("id_conflict_policy", "fail"), options.get("id_reuse_policy", "allow")
        if conflict not in _CONFLICT_POLICIES:
            raise ValueError(f"id_conflict_policy must be one of {_CONFLICT_POLICIES}, not {conflict!r}")
        if reuse not in _REUSE_POLICIES:
            raise ValueError(f"id_reuse_policy must be one of {_REUSE_POLICIES}, not {reuse!r}")
        memo, retry_policy = options.get("memo"), options.get("retry_policy")
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, not {retry_policy!r}")
        not_before, deadline = _times(options, self._core.clock())
        request = StartRequest(
            workflow_id=workflow_id,
            workflow=target.name,
            arguments=target.arguments,
            execution_deadline=deadline,
            memo=None if memo is None else encode_value(memo),
            conflict=conflict,
            reuse=reuse,
            retry_policy=retry_policy,
            not_before=not_before,
            signal=first_signal(options.get("start_signal")),
        )
        return workflow_id, request, options.get("request_id") or new_id()

    async def _request_start(self, request: StartRequest, request_id: str) -> str:
        """The run that was started, or is to be used."""
        answer = await self._core.requests.ask(request, request_id)
        workflow_id = request.workflow_id
        match answer.answer:
            case "applied" | "existing":
                return answer.run_id
            case "already_started":
                why = answer.message or f"workflow id {workflow_id!r} is in use"
                raise WorkflowAlreadyStartedError(
                    f"{why}. Use another id, wait for that run, or choose another id_conflict_policy or "
                    "id_reuse_policy.",
                    workflow_id=workflow_id,
                    run_id=answer.run_id,
                )
            case other:
                raise RequestFailedError(answer.message or f"start of workflow {workflow_id!r} was refused: {other}")


def _times(options: StartOptions, now: float) -> tuple[float | None, float | None]:
    """When the code may begin and when it times out, in Unix seconds."""
    delay, timeout = options.get("start_delay"), options.get("execution_timeout")
    if delay is not None and not 0 <= seconds(delay) < math.inf:
        raise ValueError(f"start_delay must be 0 seconds or more, not {delay!r}")
    if timeout is not None and not seconds(timeout) > 0:
        raise ValueError(f"execution_timeout must be above 0 seconds, not {timeout!r}")
    begin = now + seconds(delay or 0.0)
    return begin if delay else None, None if timeout is None else begin + seconds(timeout)


def _check_options(options: StartOptions) -> None:
    """Before the arguments: one that is given by name is missing among them."""
    if unknown := options.keys() - StartOptions.__annotations__.keys():
        names = ", ".join(sorted(unknown))
        known = ", ".join(StartOptions.__annotations__)
        raise TypeError(f"unknown option {names} for a start; there are {known}. Arguments go by position.")


@asynccontextmanager
async def open_client(
    broker: Broker, subjects: Subjects, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Client]:
    """A client over a broker that is open already. The broker stays open when the client is closed.

    Args:
        subjects: of the namespace, with its real number of shards (see `protocol.namespace`).
        clock: Unix seconds; execution deadlines are counted from it.
    """
    reader = HistoryReader(broker, subjects)
    requests = Requests(broker, subjects, reader)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(requests.serve)
            hints = CloseHints(broker, subjects, nursery)
            closings = Closings(broker, subjects, reader, hints)
            core = Core(
                broker=broker, subjects=subjects, reader=reader, requests=requests, closings=closings, clock=clock
            )
            try:
                yield Client(core)
            except BaseException as error:
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # What the body raises leaves as it is: the nursery is an implementation detail.
        if raised is None or len(group.exceptions) > 1 or group.exceptions[0] is not raised:
            raise
    if raised is not None:
        raise raised
