"""The `workflow` object: a decorator that also carries the deterministic helpers of workflow code."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import update_wrapper
from inspect import iscoroutinefunction
from random import Random
from types import FunctionType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload
from uuid import UUID

from durablefuture_trio.authoring._children import ChildStart, ChildWorkflow, child_start, target_of
from durablefuture_trio.authoring._definition import Definition
from durablefuture_trio.authoring._logging import WorkflowLogger
from durablefuture_trio.authoring._message_helpers import MessageHelpers
from durablefuture_trio.authoring._messages import MessageDefinition, messages_of
from durablefuture_trio.authoring._runtime import WorkflowInfo, WorkflowRuntime, current_run, running
from durablefuture_trio.authoring._signature import Signature, check_function, check_name, enclosing_names
from durablefuture_trio.authoring._steps import StepHelpers

P = ParamSpec("P")
R = TypeVar("R")


class WorkflowClass(Protocol):
    """A class with an async ``run``, made without arguments."""

    @property
    def run(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        """The workflow's main function."""
        ...


C = TypeVar("C", bound=WorkflowClass)


class WorkflowDefinition(Definition, Generic[P, R]):
    """A Trio program that survives the death of any process.

    Attributes:
        fn: the original async function; of a class, a function that makes an instance and awaits its ``run``.
        name: the name it is registered under.
        cls: the decorated class; None for a function.
        messages: the handlers among the methods of the class.
    """

    kind = "workflow"
    fn: Callable[P, Coroutine[Any, Any, R]]

    def __init__(
        self,
        source: FunctionType | type,
        name: str | None,
        *,
        local_names: Mapping[str, Any] | None = None,
    ) -> None:
        self.cls: type | None = None
        self.messages: tuple[MessageDefinition[..., Any], ...] = ()
        if isinstance(source, type):
            self.cls = source
            signature = Signature(_run_of(source), "workflow", skip_first=True)
            self.messages = tuple(messages_of(source).values())
            fn = _runner(source, self.messages)
        else:
            signature = Signature(source, "workflow")
            fn = source
        super().__init__(fn, name or source.__name__, signature, local_names or {})
        update_wrapper(self, source)

    @property
    def source(self) -> Any:
        return self.fn if self.cls is None else self.cls

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """In the code of another workflow: a coroutine that starts this one as a child and gives its result. A caller
        that is cancelled cancels the child and waits for its end.

        Raises:
            RuntimeError: called outside of a workflow; the message says how to start it and how to test its function.
            TypeError: the arguments do not fit the signature. PayloadError: they cannot be encoded.
            ChildWorkflowError: (when awaited) the child ended without a result, or could not be started.
        """
        child: Coroutine[Any, Any, R] = _call_child(self._running(), child_start(target_of(self, args, kwargs), {}))
        return child

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> ChildWorkflow[R]:
        """In the code of another workflow: start this one as a child and go on. See `workflow.start_child`, which takes
        options too.

        Raises:
            RuntimeError: called outside of a workflow.
            TypeError: the arguments do not fit the signature. PayloadError: they cannot be encoded.
            LimitExceededError: too many children of the run are open.
        """
        run = self._running()
        return ChildWorkflow(run.submit_child(child_start(target_of(self, args, kwargs), {})), run)

    def _running(self) -> WorkflowRuntime:
        run = current_run.get()
        if run is not None:
            return run
        raise RuntimeError(
            f"workflow {self.name} cannot be called here, where nothing would make it durable: start it with "
            f"`await client.run({self.name}, ...)` or `client.start`; in a unit test, await {self.name}.fn(...)"
        )

    def check_hints(self) -> None:
        super().check_hints()
        for message in self.messages:
            message.check_hints()

    def _restore(self, state: dict[str, Any]) -> None:
        WorkflowDefinition.__init__(self, state["fn"], state["name"])


async def _call_child(run: WorkflowRuntime, start: ChildStart) -> Any:
    return await run.call_child(start)


def _run_of(cls: type) -> FunctionType:
    run = getattr(cls, "run", None)
    if not isinstance(run, FunctionType) or not iscoroutinefunction(run):
        raise TypeError(f"@workflow class {cls.__qualname__} needs an `async def run(self, ...)`")
    return run


def _runner(cls: type, messages: tuple[MessageDefinition[..., Any], ...]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def run(*args: Any) -> Any:
        instance: Any = cls()
        current = current_run.get()
        if current is not None and messages:
            for message in messages:
                current.add_handler(message, message.bound_to(instance), is_async=message.is_async, owner=instance)
            # What was there before the run began comes before its first step.
            await current.handlers_begun()
        return await instance.run(*args)

    return run


def _define(source: Any, name: str | None) -> Any:
    if isinstance(source, type):
        if "." in source.__qualname__.rpartition("<locals>.")[2]:
            raise TypeError(
                f"@workflow does not go onto the nested class {source.__qualname__}: move it to module level"
            )
        _check_constructor(source)
        definition: WorkflowDefinition[..., Any] = WorkflowDefinition(
            source, name, local_names=enclosing_names(source, depth=2)
        )
        source.__durable_workflow__ = definition  # type: ignore[attr-defined]  # where definition_of looks
        return source
    function = check_function(source, "@workflow")
    if not iscoroutinefunction(function):
        raise TypeError(
            f"@workflow {function.__qualname__} is a plain def, but a workflow awaits its steps: write `async def`"
        )
    return WorkflowDefinition(function, name, local_names=enclosing_names(function, depth=2))


def _check_constructor(cls: type) -> None:
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise TypeError(
            f"@workflow class {cls.__qualname__} is made without arguments ({error}): take them in `run`, not in "
            "`__init__`"
        ) from None


class _WorkflowFactory:
    """``@workflow(...)`` with options: what the parentheses return."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    @overload
    def __call__(self, cls: type[C], /) -> type[C]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> WorkflowDefinition[P, R]: ...
    def __call__(self, source: Any, /) -> Any:
        return _define(source, self._name)


class WorkflowDecorator(StepHelpers, MessageHelpers):
    """``@workflow``, and what the code of a workflow may ask for."""

    @overload
    def __call__(self, cls: type[C], /) -> type[C]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> WorkflowDefinition[P, R]: ...
    @overload
    def __call__(self, /, *, name: str | None = None) -> _WorkflowFactory: ...
    def __call__(self, source: Any = None, /, *, name: str | None = None) -> Any:
        """Make an async function, or a class with an ``async def run``, a workflow.

        Args:
            name: the name to register it under; default its ``__name__``.

        Raises:
            TypeError: it cannot be a workflow; the message says what to do.
        """
        if source is not None:
            if name is not None:
                raise TypeError("@workflow takes either the function or options: write @workflow(...) above the def")
            return _define(source, None)
        check_name(name, "@workflow")
        return _WorkflowFactory(name)

    def now(self) -> datetime:
        """The workflow's time, in UTC: the same in every replay. ``trio.current_time()`` is it in Unix seconds.

        Raises:
            RuntimeError: called outside of a workflow.
        """
        return datetime.fromtimestamp(running("now()").now(), UTC)

    def info(self) -> WorkflowInfo:
        """What the run knows about itself: ids, name, start time, length of its history.

        Raises:
            RuntimeError: called outside of a workflow.
        """
        return running("info()").info

    def random(self) -> Random:
        """The run's own source of randomness: the same sequence in every replay.

        Raises:
            RuntimeError: called outside of a workflow.
        """
        return running("random()").random()

    def uuid4(self) -> UUID:
        """A UUID out of the run's own randomness: the same in every replay.

        Raises:
            RuntimeError: called outside of a workflow.
        """
        return running("uuid4()").uuid4()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the run's ids to every record, and is silent while recorded history is repeated."""
        return _logger

    def in_workflow(self) -> bool:
        """Whether the calling code runs as a part of a workflow."""
        return current_run.get() is not None

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (_the_workflow_object, ())


_logger = WorkflowLogger()

workflow = WorkflowDecorator()


def _the_workflow_object() -> WorkflowDecorator:
    return workflow
