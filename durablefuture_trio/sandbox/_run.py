"""One workflow run: stimuli in, commands out."""

from __future__ import annotations

import contextvars
import traceback
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Protocol
from uuid import UUID

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._runtime import ParentInfo, WorkflowInfo, current_run
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import CancelWorkflow, Command, CompleteWorkflow, ContinueAsNew, FailWorkflow
from durablefuture_trio.errors import NondeterminismError, PayloadError, SandboxViolationError
from durablefuture_trio.history.events import (
    CancelRequested,
    CarriedSignal,
    CarriedUpdate,
    SignalReceived,
    Stimulus,
    UpdateAccepted,
    WorkflowStarted,
)
from durablefuture_trio.history.state import SUGGESTED_EVENTS
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._blocked import RunBlockedError
from durablefuture_trio.sandbox._calls import CallStimulus, DurableCalls
from durablefuture_trio.sandbox._endings import as_failure, continuation_in, leaves, only_cancelled, stray_cancelled
from durablefuture_trio.sandbox._guards import Guards
from durablefuture_trio.sandbox._messages import Messages
from durablefuture_trio.sandbox._run_calls import RunCalls
from durablefuture_trio.sandbox._run_messages import RunMessages
from durablefuture_trio.sandbox._sources import source_of_traceback
from durablefuture_trio.sandbox._trio_driver import TrioDriver


class RunnableWorkflow(Protocol):
    """What is needed of a workflow definition."""

    @property
    def name(self) -> str: ...

    @property
    def fn(self) -> Callable[..., Awaitable[Any]]: ...

    @property
    def parameter_hints(self) -> Sequence[Any]: ...


class WorkflowRun(RunMessages, RunCalls):
    """The code of one run, between stimuli. Implements `authoring._runtime.WorkflowRuntime` for the code in it.

    Made for a `WorkflowStarted`, which is the first stimulus to be activated.

    Args:
        definition: the workflow.
        started: the first event of the run.
    """

    def __init__(self, definition: RunnableWorkflow, started: WorkflowStarted) -> None:
        super().__init__()
        self._definition = definition
        self._started = started
        self._now = started.at
        self._history_length = started.id
        self._arguments: tuple[Any, ...] = ()
        context = contextvars.copy_context()
        context.run(current_run.set, self)
        self._driver = TrioDriver(self._main, now=started.at, context=context)
        self._scope = trio.CancelScope()
        self._returned = False
        self._asked = AskedCommands()
        self._calls = DurableCalls(self._driver.reschedule, self._asked)
        self._messages = Messages(self, self._asked, context)
        self._terminal: Command | None = None
        self._blocked: RunBlockedError | NondeterminismError | None = None
        self._replaying = False
        self._closing = False
        self._random: Random | None = None
        self._noise: Random | None = None
        self._memo: Any = None
        self.activations = 0

    @property
    def finished(self) -> bool:
        """Whether the run has asked for its end."""
        return self._terminal is not None

    @property
    def wake_at(self) -> float | None:
        """The next deadline some task waits for, in Unix seconds."""
        if self.finished:
            return None
        deadline = self._driver.next_deadline
        return None if deadline == float("inf") else deadline

    def activate(self, stimulus: Stimulus, *, replaying: bool = False) -> list[Command]:
        """Apply one stimulus, with the clock at its timestamp, until nothing can run any more.

        Returns:
            What the code asked for: schedules in order, then cancels sorted by call, then the end of the run.

        Raises:
            RunBlockedError, NondeterminismError: the run cannot go on with this code and has to be closed.
        """
        self.activations += 1
        if self.finished:
            return []
        self._replaying = replaying
        # The clock of a history never goes back; an owner with a slow clock must not make it.
        self._now = max(self._now, stimulus.at)
        self._history_length = stimulus.id
        with Guards(self):
            try:
                self._apply(stimulus)
                self._step()
            except (RunBlockedError, NondeterminismError) as error:
                self._block(error)  # a violation that led to it came first and stays
        if self._blocked is not None:
            raise self._blocked
        commands = self._asked.take()
        if self._terminal is not None:
            commands.append(self._terminal)
        return commands

    def task_stacks(self) -> str:
        """Where every task of the run stands, for people."""
        return self._driver.task_stacks()

    def close(self) -> None:
        """Drop the run. What its ``finally`` blocks do has no effect: guards on, commands discarded, awaits refused."""
        self._closing = True
        with Guards(self):
            self._driver.close()
        self._calls.forget()
        self._asked.forget()
        self._messages.forget()
        self._conditions.forget()
        self._blocked = None  # its traceback leads back here

    def _apply(self, stimulus: Stimulus) -> None:
        if isinstance(stimulus, WorkflowStarted):
            self._arguments = self._decode_arguments(stimulus)
            self._carry_over(stimulus)
        elif isinstance(stimulus, CallStimulus):
            self._calls.settle(stimulus)
        elif isinstance(stimulus, SignalReceived):
            self._take_signal(CarriedSignal(stimulus.name, stimulus.arguments))
        elif isinstance(stimulus, UpdateAccepted):
            self._take_update(CarriedUpdate(stimulus.update_id, stimulus.name, stimulus.arguments))
        elif isinstance(stimulus, CancelRequested):
            self._cancel(stimulus.reason)
        if self._conditions.any_waiting:
            # Workflow time has moved, which predicates may look at.
            self._driver.enter(self._conditions.check)

    def _carry_over(self, started: WorkflowStarted) -> None:
        """What the run before was given and did not take, as if it had just come."""
        if started.cancel_reason is not None:
            self._cancel(started.cancel_reason)
        for signal in started.signals:
            self._take_signal(signal)
        for update in started.updates:
            self._take_update(update)

    def _take_signal(self, signal: CarriedSignal) -> None:
        self._driver.enter(lambda: self._messages.signal(signal))

    def _take_update(self, update: CarriedUpdate) -> None:
        self._driver.enter(lambda: self._messages.update(update))

    def _cancel(self, reason: str) -> None:
        if self._cancel_reason is None:
            self._cancel_reason = reason
            self._driver.enter(self._scope.cancel)

    def _decode_arguments(self, started: WorkflowStarted) -> tuple[Any, ...]:
        try:
            return codec.decode_arguments(started.arguments, self._definition.parameter_hints)
        except MemoryError:
            raise
        except Exception as error:
            raise RunBlockedError(
                f"the arguments of workflow {started.workflow!r} cannot be rebuilt: {error}. They are recorded: run "
                "code whose parameters fit them, or terminate the workflow.",
                kind="undecodable",
            ) from error

    def _step(self) -> None:
        try:
            self._driver.step(self._now)
        except trio.TrioInternalError as error:
            raise RunBlockedError(
                f"the workflow broke Trio's run loop, which only misuse of trio.lowlevel does: {error.__cause__!r}",
                kind="crashed",
                stack="".join(traceback.format_exception(error)),
            ) from error

    # --- the root task ------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        try:
            try:
                with self._scope:
                    await self._delayed()
                    async with trio.open_nursery() as nursery:
                        self._messages.open(nursery)
                        result = await self._definition.fn(*self._arguments)
                        self._returned = True
            finally:
                self._messages.hold()
                await self._calls.end_submitted()
        except BaseException as error:
            if self._closing:
                raise
            # The outermost frame of the run: no scope is left that a Cancelled could belong to.
            self._end_with(error)
        else:
            if self._returned:
                self._complete(result)
            elif self._cancel_reason is None:
                # The nursery has taken it for its own.
                self._fail(stray_cancelled(None))
            else:
                self._terminal = CancelWorkflow(reason=self._cancel_reason or "")
        self._tell_unfinished()

    async def _delayed(self) -> None:
        not_before = self._started.not_before
        if not_before is not None and not_before > self._now:
            await trio.sleep_until(not_before)

    def _end_with(self, error: BaseException) -> None:
        wish = continuation_in(error)
        if wish is None:
            self._fail(error)
            return
        signals, updates = self._messages.left_over()
        self._terminal = ContinueAsNew(
            workflow=wish.workflow,
            arguments=wish.arguments,
            signals=signals,
            updates=updates,
            source=source_of_traceback(wish.__traceback__),
        )

    def _tell_unfinished(self) -> None:
        if isinstance(self._terminal, ContinueAsNew):
            return
        begin = f"the run of {self._definition.name} ended"
        if unfinished := self._messages.unfinished:
            self.note("WARNING", f"{begin} before these were done: {', '.join(unfinished)}")
        if untaken := self._messages.untaken:
            self.note("INFO", f"{begin}, and nobody had taken these: {', '.join(untaken)}")

    def _complete(self, result: Any) -> None:
        try:
            self._terminal = CompleteWorkflow(result=codec.encode_value(result))
        except PayloadError as error:
            self._fail(
                PayloadError(
                    f"the result of workflow {self._definition.name!r} cannot be recorded: {error.message}",
                    path=error.path,
                )
            )

    def _fail(self, error: BaseException) -> None:
        self._block_for(error)
        if self._blocked is None:
            failure = as_failure(error)
            self._terminal = FailWorkflow(
                failure=self._failure_record(failure), source=source_of_traceback(failure.__traceback__)
            )

    def _block_for(self, error: BaseException) -> None:
        """Block the run if there is something in `error` that right code heals."""
        for leaf in leaves(error):
            if isinstance(leaf, NondeterminismError | RunBlockedError):
                self._block(leaf)
            elif isinstance(leaf, SandboxViolationError):
                self.violated(leaf)
            elif isinstance(leaf, MemoryError):
                self._block(
                    RunBlockedError(
                        "the workflow ran into the memory limit of its process: raise `memory_limit_mb` in [sandbox], "
                        "or keep large values in activities",
                        kind="crashed",
                        out_of_memory=True,
                        source=source_of_traceback(leaf.__traceback__),
                        stack="".join(traceback.format_exception(leaf)),
                    )
                )

    def failure_of_handler(self, error: BaseException, what: str) -> Failure | None:
        """What is recorded of an exception that left the handler of an update; None: it ends more than the handler (a
        cancel, something that blocks the run) and is to be raised."""
        self._block_for(error)
        if self._blocked is not None or self._closing or only_cancelled(error):
            return None
        if continuation_in(error) is not None:
            self._messages.release()
            return self._failure_record(
                RuntimeError(
                    f"{what} called continue_as_new, which would end the run before the update has an answer: set a "
                    "variable that the workflow function waits for, and continue as new there"
                )
            )
        failure = as_failure(error)
        return self._failure_record(failure) if isinstance(failure, Exception) else None

    def _failure_record(self, error: BaseException) -> Failure:
        try:
            return codec.failure_of(error)
        except Exception as reason:  # noqa: BLE001 - e.g. a __str__ or details of the user's that raise
            unspeakable = PayloadError(
                f"the workflow raised {type(error).__name__}, which cannot be recorded: {reason}", path="$"
            )
            return codec.failure_of(unspeakable)

    def _block(self, error: RunBlockedError | NondeterminismError) -> None:
        if self._blocked is None and not self._closing:
            self._blocked = error

    # --- GuardedRun ---------------------------------------------------------------------------------------------------

    @property
    def noise(self) -> Random:
        """Feeds `random`, `os.urandom`, `uuid` and `secrets`; apart from `random`, whose sequence users may rely on."""
        if self._reading is not None:
            self.refuse("randomness")
        if self._noise is None:
            self._noise = Random(f"durablefuture noise {self._started.run_id}")
        return self._noise

    def violated(self, error: SandboxViolationError) -> None:
        """Block the run, or fail what is being asked, whatever becomes of the exception in user code."""
        if self._reading is not None:
            self._reading.violation = self._reading.violation or error
            return
        self._block(RunBlockedError(error.message, kind="sandbox_violation", source=getattr(error, "source", "")))

    # --- WorkflowRuntime ----------------------------------------------------------------------------------------------

    @property
    def definition(self) -> RunnableWorkflow:
        """The workflow that runs."""
        return self._definition

    @property
    def info(self) -> WorkflowInfo:
        started = self._started
        parent = started.parent
        return WorkflowInfo(
            workflow_id=started.workflow_id,
            run_id=started.run_id,
            workflow=started.workflow,
            started_at=started.at,
            history_length=self._history_length,
            continue_as_new_suggested=self._history_length >= SUGGESTED_EVENTS,
            attempt=started.attempt,
            parent=None if parent is None else ParentInfo(workflow_id=parent.workflow_id, run_id=parent.run_id),
            first_run_id=started.first_run_id or started.run_id,
            continued_from=started.continued_from or None,
            memo=self._decoded_memo(),
        )

    def _decoded_memo(self) -> Any:
        if self._memo is None and self._started.memo is not None:
            self._memo = codec.decode_value(self._started.memo, Any)
        return self._memo

    def now(self) -> float:
        """Workflow time in Unix seconds."""
        return self._now

    def random(self) -> Random:
        """The run's deterministic source of randomness."""
        self.refuse("random()")
        if self._random is None:
            self._random = Random(f"durablefuture random {self._started.run_id}")
        return self._random

    def uuid4(self) -> UUID:
        """A deterministic UUID."""
        self.refuse("uuid4()")
        return UUID(int=self.random().getrandbits(128), version=4)

    def replaying(self) -> bool:
        """Whether recorded history is being repeated."""
        return self._replaying
