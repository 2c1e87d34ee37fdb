"""The `activity` object: a decorator that also carries what activity code asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, update_wrapper
from inspect import iscoroutinefunction
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, overload

from durablefuture_trio.authoring._activity_context import ActivityInfo, current_activity
from durablefuture_trio.authoring._definition import Definition
from durablefuture_trio.authoring._futures import DurableFuture
from durablefuture_trio.authoring._logging import ActivityLogger
from durablefuture_trio.authoring._options import (
    ActivityOptions,
    OptionsScope,
    checked_options,
    configured_options,
    current_scope,
    merged_record,
)
from durablefuture_trio.authoring._runtime import WorkflowRuntime, current_run
from durablefuture_trio.authoring._signature import Signature, check_function, check_name, enclosing_names
from durablefuture_trio.history.options import ActivityOptionsRecord

P = ParamSpec("P")
R = TypeVar("R")


class ActivityDefinition(Definition, Generic[P, R]):
    """A function that touches the world, as a durable step of workflows.

    Called inside a workflow it is scheduled, run by a worker (at least once), and its recorded result is returned.
    Called anywhere else it just runs: an ``async def`` in the calling task, a plain ``def`` in a thread.

    Attributes:
        fn: the original function.
        name: the name it is registered under.
        is_async: whether it is an ``async def``.
    """

    kind = "activity"
    fn: Callable[P, Any]

    def __init__(
        self,
        fn: FunctionType,
        name: str | None,
        options: Mapping[str, Any],
        *,
        local_names: Mapping[str, Any] | None = None,
    ) -> None:
        self.is_async = iscoroutinefunction(fn)
        super().__init__(fn, name or fn.__name__, Signature(fn, "activity"), local_names or {})
        self._declared = dict(options)
        self._call_options: dict[str, Any] = {}
        self._latest: tuple[OptionsScope | None, Mapping[str, Any], ActivityOptionsRecord] | None = None
        update_wrapper(self, fn)

    @property
    def options(self) -> Mapping[str, Any]:
        """The options given to the decorator and to `with_options`, in seconds."""
        return {**self._declared, **self._call_options}

    def with_options(self, **options: Unpack[ActivityOptions]) -> ActivityDefinition[P, R]:
        """The same activity with other options, which go before those of every scope around the call:

            await charge.with_options(start_to_close_timeout=5)(customer, amount)

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a value out of its range.
        """
        checked = checked_options(options, f"{self.name}.with_options")
        copy: ActivityDefinition[P, R] = ActivityDefinition.__new__(ActivityDefinition)
        copy.__dict__.update(self.__dict__)
        copy._call_options = {**self._call_options, **checked}
        copy._latest = None
        return copy

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A coroutine that does the call, and returns the activity's result.

        Raises:
            TypeError: the arguments do not fit the signature.
            ActivityError: (when awaited in a workflow) it failed for good.
        """
        arguments = self.signature.bind(args, kwargs)
        run = current_run.get()
        if run is None:
            return self._run_here(arguments)
        return self._schedule(run, arguments, self.call_record())

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> DurableFuture[R]:
        """Schedule the activity and go on: it runs while the workflow does something else.

            charge = charge_credit_card.submit(customer, amount)
            stock = await reserve(product)
            receipt = Receipt(await charge, stock)

        The options are those in force where `submit` is called.

        Raises:
            RuntimeError: called outside of a workflow.
            TypeError: the arguments do not fit the signature. PayloadError: they cannot be encoded.
            LimitExceededError: too many calls of the run are open.
        """
        arguments = self.signature.bind(args, kwargs)
        run = current_run.get()
        if run is None:
            raise RuntimeError(
                f"{self.name}.submit works only in the code of a running workflow, which owns the future: here, "
                f"await {self.name}(...), in a nursery to run several at once"
            )
        return DurableFuture(run.submit_activity(self.name, arguments, self.call_record(), self.result_hint))

    def call_record(self) -> ActivityOptionsRecord:
        """The options of a call made here and now: those of the call, the scopes, the decorator, the configuration."""
        scope = current_scope()
        configured = configured_options()
        latest = self._latest
        if latest is not None and latest[0] is scope and latest[1] is configured:
            return latest[2]
        record = merged_record(configured, self._declared, {} if scope is None else scope.options, self._call_options)
        self._latest = (scope, configured, record)
        return record

    async def _schedule(self, run: WorkflowRuntime, arguments: tuple[Any, ...], record: ActivityOptionsRecord) -> R:
        result: R = await run.call_activity(self.name, arguments, record, self.result_hint)
        return result

    async def _run_here(self, arguments: tuple[Any, ...]) -> R:
        fn: Callable[..., Any] = self.fn
        if self.is_async:
            result: R = await fn(*arguments)
            return result
        # Imported late: workflow code and type-only users never need it.
        from trio import to_thread

        return await to_thread.run_sync(partial(fn, *arguments))

    def _state_by_value(self) -> dict[str, Any]:
        return {**super()._state_by_value(), "declared": self._declared, "call_options": self._call_options}

    def _restore(self, state: dict[str, Any]) -> None:
        ActivityDefinition.__init__(self, state["fn"], state["name"], state["declared"])
        self._call_options = state["call_options"]

    def _reference_state(self) -> dict[str, Any]:
        return self._call_options

    def with_reference_state(self, state: dict[str, Any]) -> ActivityDefinition[P, R]:
        return self.with_options(**state)


class _ActivityFactory:
    """``@activity(...)`` with options: what the parentheses return."""

    def __init__(self, name: str | None, options: Mapping[str, Any]) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> ActivityDefinition[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> ActivityDefinition[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> ActivityDefinition[..., Any]:
        return _define(fn, self._name, self._options)


def _define(fn: Callable[..., Any], name: str | None, options: Mapping[str, Any]) -> ActivityDefinition[..., Any]:
    function = check_function(fn, "@activity")
    return ActivityDefinition(function, name, options, local_names=enclosing_names(function, depth=2))


class ActivityDecorator:
    """``@activity``, and what the code of an activity may ask for."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> ActivityDefinition[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> ActivityDefinition[P, R]: ...
    @overload
    def __call__(self, /, *, name: str | None = None, **options: Unpack[ActivityOptions]) -> _ActivityFactory: ...
    def __call__(
        self, fn: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Unpack[ActivityOptions]
    ) -> Any:
        """Make a function an activity, bare or with options:

            @activity(start_to_close_timeout=30, retry_policy=RetryPolicy(maximum_attempts=3))
            async def charge(customer: str, amount: float) -> Charge: ...

        Args:
            name: the name to register it under; default the function's ``__name__``.
            options: see `ActivityOptions`.

        Raises:
            TypeError: it cannot be an activity, or an option is unknown or of the wrong type.
            ValueError: an option is out of its range.
        """
        if fn is not None:
            if name is not None or options:
                raise TypeError("@activity takes either the function or options: write @activity(...) above the def")
            return _define(fn, None, {})
        check_name(name, "@activity")
        return _ActivityFactory(name, checked_options(options, "@activity"))

    def info(self) -> ActivityInfo:
        """The attempt this code runs in: ids, attempt number, deadline, idempotency key.

        Raises:
            RuntimeError: called outside of an activity that is run by a worker.
        """
        context = current_activity.get()
        if context is None:
            raise RuntimeError(
                "activity.info() is known only while a worker runs the activity: in a unit test of the function, pass "
                "what it needs as an argument"
            )
        return context

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the ids of the attempt to every record."""
        return _logger

    def in_activity(self) -> bool:
        """Whether a worker is running the calling code as an activity."""
        return current_activity.get() is not None

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (_the_activity_object, ())


_logger = ActivityLogger()

activity = ActivityDecorator()


def _the_activity_object() -> ActivityDecorator:
    return activity
