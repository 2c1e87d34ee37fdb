"""Other workflows as workflow code sees them: children it starts, and any it knows the id of."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping
from datetime import timedelta
from typing import Any, Protocol, TypedDict, TypeVar, TypeVarTuple, overload

import msgspec

from durablefuture_trio import codec
from durablefuture_trio._ids import check_workflow_id
from durablefuture_trio.authoring._definition import Definition, definition_of
from durablefuture_trio.authoring._futures import Countdown, DurableCall, DurableFuture
from durablefuture_trio.authoring._runtime import WorkflowRuntime
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.events import ParentClose
from durablefuture_trio.history.options import RetryPolicy, seconds

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Ts = TypeVarTuple("Ts")

_PARENT_CLOSE: tuple[ParentClose, ...] = ("terminate", "cancel", "abandon")


class HasRun(Protocol[*Ts, R_co]):
    """An instance of a class decorated with ``@workflow``."""

    def run(self, *args: *Ts) -> Awaitable[R_co]: ...


class ChildOptions(TypedDict, total=False):
    """How a child workflow is started.

    Keys:
        id: its workflow id; default: made of the parent's ids and the number of the call.
        parent_close: what becomes of it when this run ends before it: ``"terminate"`` (default), ``"cancel"``, or
            ``"abandon"``: it goes on by itself.
        execution_timeout: seconds (or a timedelta) after which it times out; default: never.
        retry_policy: how failed runs of it are repeated; default: not at all.
        memo: a value shown in listings and descriptions.
    """

    id: str | None
    parent_close: ParentClose
    execution_timeout: float | timedelta | None
    retry_policy: RetryPolicy | None
    memo: object


class Target(msgspec.Struct, frozen=True):
    """The workflow to start: its name, the encoded arguments, and what its result is rebuilt as."""

    name: str
    arguments: Payload
    result_type: Any


class ChildStart(msgspec.Struct, frozen=True, kw_only=True):
    """A child workflow to be started, checked. ``workflow_id`` empty: the run makes one."""

    target: Target
    workflow_id: str = ""
    parent_close: ParentClose = "terminate"
    execution_timeout: float | None = None
    retry_policy: RetryPolicy | None = None
    memo: Payload | None = None


class ChildCall(DurableCall):
    """The call of a child workflow, as its future sees it. The run makes and settles it.

    Attributes:
        workflow_id: the child's.
        run_id: of its first run; empty until that has started.
        start: settled with the run id when the child has started, or with the error when it cannot.
    """

    __slots__ = ()

    workflow_id: str
    run_id: str
    start: DurableCall


class ChildWorkflow(DurableFuture[T_co]):
    """A child workflow, started by ``other.submit(...)`` or ``workflow.start_child(other, ...)``: a `DurableFuture` of
    its result.

    Awaiting it raises `ChildWorkflowError` when the child ends without a result. `cancel` cancels the child's root
    scope. A child that is still open when this run ends is treated as its ``parent_close`` says.
    """

    __slots__ = ("_child", "_run")

    def __init__(self, call: ChildCall, run: WorkflowRuntime) -> None:
        super().__init__(call)
        self._child = call
        self._run = run

    @property
    def id(self) -> str:
        """The child's workflow id."""
        return self._child.workflow_id

    async def started(self) -> str:
        """Wait until the child's start is recorded; gives the id of its run.

        Raises:
            ChildWorkflowError: it cannot be started, e.g. because its id is in use.
        """
        await Countdown((self._child.start,)).sleep()
        run_id: str = self._child.start.result()
        return run_id

    async def signal(self, signal: Any, *args: Any) -> None:
        """Send the child a signal, once it has started. Returns when it is in the child's history.

        Args:
            signal: a declared signal, or the name of one.
            args: its arguments.

        Raises:
            ChildWorkflowError: the child cannot be started.
            WorkflowNotFoundError: it has ended.
            TypeError: the arguments do not fit the declaration. PayloadError: they cannot be encoded.
        """
        name, arguments = encoded_signal(signal, args)
        await self.started()
        await self._run.signal_external(self.id, "", name, arguments)


class ExternalWorkflow:
    """A workflow that may run anywhere, known by its id: what ``workflow.handle(id)`` returns in workflow code.

    ``await workflow.handle(id)`` gives its result, as `result` does.
    """

    __slots__ = ("_run", "_run_id", "_workflow_id")

    def __init__(self, run: WorkflowRuntime, workflow_id: str, run_id: str | None) -> None:
        check_workflow_id(workflow_id)
        self._run = run
        self._workflow_id = workflow_id
        self._run_id = run_id or ""

    @property
    def id(self) -> str:
        """The workflow id."""
        return self._workflow_id

    @property
    def run_id(self) -> str | None:
        """The run that is meant; None: whichever is open when the request arrives."""
        return self._run_id or None

    async def signal(self, signal: Any, *args: Any) -> None:
        """Send it a signal. Returns when that is in its history. A caller that is cancelled meanwhile does not call the
        signal back.

        Args:
            signal: a declared signal, or the name of one.
            args: its arguments.

        Raises:
            WorkflowNotFoundError: there is no open run of it.
            TypeError: the arguments do not fit the declaration. PayloadError: they cannot be encoded.
        """
        name, arguments = encoded_signal(signal, args)
        await self._run.signal_external(self._workflow_id, self._run_id, name, arguments)

    async def cancel(self, reason: str = "") -> None:
        """Ask it to end: its root scope is cancelled. Returns when that is in its history, not when it has ended.

        Args:
            reason: for people; kept in its history.

        Raises:
            WorkflowNotFoundError: there is no open run of it.
        """
        await self._run.cancel_external(self._workflow_id, self._run_id, reason)

    @overload
    async def result(self, result_type: type[R]) -> R: ...
    @overload
    async def result(self, result_type: Any = ...) -> Any: ...
    async def result(self, result_type: Any = Any) -> Any:
        """Wait until it has ended, and give its result. A run that continues as new, or is tried again, has not ended:
        the runs that go on with it are waited for. A caller that is cancelled stops waiting at once; the other workflow
        does not notice.

        Args:
            result_type: what the result is rebuilt as.

        Raises:
            WorkflowFailedError, WorkflowCancelledError, WorkflowTerminatedError, WorkflowTimedOutError: it ended
                without one.
            WorkflowNotFoundError: there is no run of it, or the one that is meant is not the latest.
            RequestFailedError: too many calls wait for it already.
            LimitExceededError: too many requests of this run are open.
            ValueError: it is the very run that asks.
        """
        return await self._run.result_external(self._workflow_id, self._run_id, result_type)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.result().__await__()

    def __repr__(self) -> str:
        return f"<ExternalWorkflow {self._workflow_id!r}>"


def target_of(wf: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result_type: Any = Any) -> Target:
    """The workflow that `wf` (a definition, a decorated class, a name) means, with its arguments checked and encoded.

    Raises:
        TypeError: `wf` is no workflow, or the arguments do not fit its signature.
        PayloadError: an argument cannot be encoded, or rebuilt as its parameter's type, or they are too large.
    """
    if isinstance(wf, str):
        if not wf:
            raise TypeError("the name of a workflow must not be empty")
        return Target(wf, codec.encode_arguments(args), result_type)
    definition = _workflow_of(wf)
    arguments = codec.encode_arguments(definition.bind_arguments(args, kwargs))
    try:
        codec.decode_arguments(arguments, definition.parameter_hints)
    except PayloadError as error:
        # Refused here, because what is recorded cannot be mended: it would block the run for ever.
        names = ", ".join(definition.signature.names)
        raise PayloadError(
            f"the arguments do not fit workflow {definition.name}({names}): {error.message}", path=error.path
        ) from error
    return Target(definition.name, arguments, definition.result_hint if result_type is Any else result_type)


def _workflow_of(wf: Any) -> Definition:
    definition = definition_of(wf)
    if definition is None:
        raise TypeError(f"{wf!r} is no workflow: decorate it with @workflow, or give the name of one as a string")
    if definition.kind != "workflow":
        raise TypeError(f"{wf!r} is an activity, not a workflow: await it, or use its submit()")
    return definition


def child_start(target: Target, options: Mapping[str, Any]) -> ChildStart:
    """`ChildOptions`, checked.

    Raises:
        TypeError: an unknown option, or a value of the wrong type. ValueError: a value out of its range.
        PayloadError: the memo cannot be encoded.
    """
    unknown = options.keys() - ChildOptions.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"start_child: unknown option {', '.join(map(repr, sorted(unknown)))}; the options are "
            f"{', '.join(ChildOptions.__annotations__)}"
        )
    workflow_id = options.get("id")
    if workflow_id is not None:
        check_workflow_id(workflow_id)
    parent_close: ParentClose = options.get("parent_close", "terminate")
    if parent_close not in _PARENT_CLOSE:
        raise ValueError(f"start_child: parent_close is one of {', '.join(_PARENT_CLOSE)}, not {parent_close!r}")
    timeout = options.get("execution_timeout")
    if timeout is not None:
        timeout = seconds(timeout)
        if not 0 < timeout < float("inf"):
            raise ValueError(f"start_child: execution_timeout must be above 0 seconds and finite, not {timeout!r}")
    policy = options.get("retry_policy")
    if policy is not None and not isinstance(policy, RetryPolicy):
        raise TypeError(f"start_child: retry_policy must be a RetryPolicy, not {policy!r}")
    memo = options.get("memo")
    return ChildStart(
        target=target,
        workflow_id=workflow_id or "",
        parent_close=parent_close,
        execution_timeout=timeout,
        retry_policy=policy,
        memo=None if memo is None else codec.encode_value(memo),
    )


def encoded_signal(signal: Any, args: tuple[Any, ...]) -> tuple[str, Payload]:
    """Name and encoded arguments of a signal.

    Raises:
        TypeError: `signal` is neither a name nor a declared signal, or the arguments do not fit its declaration.
        PayloadError: they cannot be encoded.
    """
    if isinstance(signal, str):
        if not signal:
            raise TypeError("the name of a signal must not be empty")
        return signal, codec.encode_arguments(args)
    if isinstance(signal, Definition) and signal.kind == "signal":
        return signal.name, codec.encode_arguments(signal.bind_arguments(args))
    raise TypeError(f"{signal!r} is no signal: give a signal declared with @workflow.signal, or its name")
