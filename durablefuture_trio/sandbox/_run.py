"""One workflow run: stimuli in, commands out."""

from __future__ import annotations

import contextvars
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import Any, Protocol
from uuid import UUID

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._runtime import WorkflowInfo, current_run
from durablefuture_trio.engine.commands import Command, CompleteWorkflow, FailWorkflow
from durablefuture_trio.errors import NondeterminismError, PayloadError, SandboxViolationError
from durablefuture_trio.history.events import Stimulus, WorkflowStarted
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._blocked import RunBlockedError
from durablefuture_trio.sandbox._calls import CallStimulus, DurableCalls
from durablefuture_trio.sandbox._guards import Guards
from durablefuture_trio.sandbox._run_calls import RunCalls
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


class WorkflowRun(RunCalls):
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
        self._asked = AskedCommands()
        self._calls = DurableCalls(self._driver.reschedule, self._asked)
        self._terminal: Command | None = None
        self._blocked: RunBlockedError | NondeterminismError | None = None
        self._replaying = False
        self.history_patches: frozenset[str] = frozenset()
        self._closing = False
        self._random: Random | None = None
        self._noise: Random | None = None
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
        self._blocked = None  # its traceback leads back here

    def _apply(self, stimulus: Stimulus) -> None:
        if isinstance(stimulus, WorkflowStarted):
            self._arguments = self._decode_arguments(stimulus)
        elif isinstance(stimulus, CallStimulus):
            self._calls.settle(stimulus)

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
                result = await self._definition.fn(*self._arguments)
            finally:
                await self._calls.end_submitted()
        except BaseException as error:
            if self._closing:
                raise
            # The outermost frame of the run: no scope is left that a Cancelled could belong to.
            self._fail(error)
        else:
            self._complete(result)

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
        for leaf in _leaves(error):
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
        if self._blocked is None:
            self._terminal = self._failure_command(_as_failure(error))

    def _failure_command(self, error: BaseException) -> FailWorkflow:
        source = source_of_traceback(error.__traceback__)
        try:
            return FailWorkflow(failure=codec.failure_of(error), source=source)
        except Exception as reason:  # noqa: BLE001 - e.g. a __str__ or details of the user's that raise
            unspeakable = PayloadError(
                f"the workflow raised {type(error).__name__}, which cannot be recorded: {reason}", path="$"
            )
            return FailWorkflow(failure=codec.failure_of(unspeakable), source=source)

    def _block(self, error: RunBlockedError | NondeterminismError) -> None:
        if self._blocked is None and not self._closing:
            self._blocked = error

    # --- GuardedRun ---------------------------------------------------------------------------------------------------

    @property
    def noise(self) -> Random:
        """Feeds `random`, `os.urandom`, `uuid` and `secrets`; apart from `random`, whose sequence users may rely on."""
        if self._noise is None:
            self._noise = Random(f"durablefuture noise {self._started.run_id}")
        return self._noise

    def violated(self, error: SandboxViolationError) -> None:
        """Block the run, whatever becomes of the exception in user code."""
        self._block(RunBlockedError(error.message, kind="sandbox_violation", source=getattr(error, "source", "")))

    # --- WorkflowRuntime ----------------------------------------------------------------------------------------------

    @property
    def definition(self) -> RunnableWorkflow:
        """The workflow that runs."""
        return self._definition

    @property
    def info(self) -> WorkflowInfo:
        started = self._started
        return WorkflowInfo(
            workflow_id=started.workflow_id,
            run_id=started.run_id,
            workflow=started.workflow,
            started_at=started.at,
            history_length=self._history_length,
        )

    def now(self) -> float:
        """Workflow time in Unix seconds."""
        return self._now

    def random(self) -> Random:
        """The run's deterministic source of randomness."""
        if self._random is None:
            self._random = Random(f"durablefuture random {self._started.run_id}")
        return self._random

    def uuid4(self) -> UUID:
        """A deterministic UUID."""
        return UUID(int=self.random().getrandbits(128), version=4)

    def replaying(self) -> bool:
        """Whether recorded history is being repeated."""
        return self._replaying


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _as_failure(error: BaseException) -> BaseException:
    """What is recorded: groups with a single leaf collapsed, and Cancelled left out, which is nobody's failure."""
    if isinstance(error, BaseExceptionGroup):
        _, rest = error.split(trio.Cancelled)
        if rest is not None:
            error = rest
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if all(isinstance(leaf, trio.Cancelled) for leaf in _leaves(error)):
        stray = RuntimeError(
            "trio.Cancelled left the workflow function, but the scope that it belongs to was closed before: do not "
            "keep a Cancelled and raise it later"
        )
        stray.__cause__ = error
        return stray
    return error
